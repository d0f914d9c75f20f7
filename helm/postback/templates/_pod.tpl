{{/* These take a dict of root, component, pool and role, as `postback.pools` makes them, and of args. */}}

{{/* A pod template. Its pod has one container, or those of `containers`, a list of dicts whose fields precede. */}}
{{- define "postback.podTemplate" -}}
metadata:
  labels:
    {{- include "postback.labels" . | nindent 4 }}
    {{- if has "door" (default list .role.roles) }}
    postback/door: "true"
    {{- end }}
    {{- with .role.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (default dict .role.podAnnotations) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "postback.pod" . | nindent 2 }}
{{- end }}

{{- define "postback.pod" -}}
{{- if has .component (list "topics" "test") }}
# A hook runs without the chart's own objects: it has the namespace's default account, and no token.
restartPolicy: Never
{{- else }}
serviceAccountName: {{ include "postback.serviceAccountName" .root }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .role.drainSeconds }}
# drain + margin: SIGKILL during a drain breaks no promise, but the work has to be repeated.
terminationGracePeriodSeconds: {{ add . $.role.marginSeconds }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "runtimeClassName" "priorityClassName" "nodeSelector" "tolerations" "affinity" }}
{{- with index $.role $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- with .role.topologySpreadConstraints }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "postback.selectorLabels" $ | fromYaml)) }}
topologySpreadConstraints:
  {{- range . }}
  - {{ ternary . (merge (deepCopy .) $selector) (hasKey . "labelSelector") | toJson }}
  {{- end }}
{{- end }}
{{- with concat (default list .role.extraInitContainers) (include "postback.downloads" . | fromYamlArray) }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  {{- range default (list dict) .containers }}
  - {{ include "postback.container" (merge . $) | nindent 4 | trim }}
  {{- end }}
  {{- with .role.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- range include "postback.mounts" . | fromJsonArray }}
  {{- if .volume }}
  - {{ merge (dict "name" .name) .volume | toJson }}
  {{- end }}
  {{- end }}
  {{- with .role.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Also takes name and command, which may be absent. */}}
{{- define "postback.container" -}}
name: {{ .name | default .component }}
image: {{ include "postback.image" . | quote }}
imagePullPolicy: {{ default .root.Values.image.pullPolicy (default dict .role.image).pullPolicy }}
{{- with .command }}
command: {{ toJson . }}
{{- end }}
args:
  {{- toYaml .args | nindent 2 }}
{{- with include "postback.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
{{- with .role.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if has .component (list "worker" "delivery" "gateway" "exporter") }}
ports:
  - name: metrics
    containerPort: 9464
  {{- if has "door" (default list .role.roles) }}
  - name: {{ include "postback.gateway.scheme" .root }}
    containerPort: 8443
  {{- end }}
{{- with .role.startupSeconds }}
# /healthz is 503 until the model is loaded, which takes minutes; liveness counts from then on.
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (add . 4) 5) }}
{{- end }}
{{- range $probe, $path := dict "liveness" "/healthz" "readiness" "/readyz" }}
{{ $probe }}Probe:
  httpGet: {path: {{ $path }}, port: metrics}
  {{- index $.root.Values.probes $probe | toYaml | nindent 2 }}
{{- end }}
{{- end }}
resources:
  {{- $gpus := ternary (dict "limits" (dict (default "" .role.gpuResource) (int .role.gpus))) dict (gt (int .role.gpus) 0) }}
  {{- merge $gpus (deepCopy .role.resources) | toYaml | nindent 2 }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  {{- range include "postback.mounts" . | fromJsonArray }}
  - {{ omit . "volume" "claim" | toJson }}
  {{- end }}
  {{- with .role.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/*
The volumes of a container, as a JSON array of dicts: name and mountPath, with the volume's source, or the size and the
class of a claim for each pod. A Secret is mounted whole, without subPath, so that a changed one reaches running pods;
its files are readable by the pod's group, and closed to others.
*/}}
{{- define "postback.mounts" -}}
{{- $values := .root.Values }}
{{- $gateway := eq .component "gateway" | ternary $values.gateway dict }}
{{- $mounts := list (dict "name" "tmp" "mountPath" "/tmp" "volume" (dict "emptyDir" (dict "sizeLimit" "1Gi"))) }}
{{- with .role.cache }}
{{- $source := dict "volume" (dict "emptyDir" (dict "sizeLimit" .sizeLimit)) }}
{{- if .existingClaim }}
{{- $source = dict "volume" (dict "persistentVolumeClaim" (dict "claimName" .existingClaim)) }}
{{- else if .claimSize }}
{{- $source = dict "claim" (dict "size" .claimSize "class" .storageClassName) }}
{{- end }}
{{- $mounts = append $mounts (merge $source (dict "name" "cache" "mountPath" "/var/cache/postback")) }}
{{- end }}
{{- with and (eq .component "worker") .role.shmSize }}
{{- $mounts = append $mounts (dict "name" "shm" "mountPath" "/dev/shm" "volume" (dict "emptyDir" (dict "medium" "Memory" "sizeLimit" .))) }}
{{- end }}
{{- with $gateway }}
{{- if or (not .store.existingSecret) (not .files.place) .storage.existingClaim }}
{{- $source := dict "claim" (dict "size" .storage.size "class" .storage.storageClassName) }}
{{- with .storage.existingClaim }}
{{- $source = dict "volume" (dict "persistentVolumeClaim" (dict "claimName" .)) }}
{{- end }}
{{- $mounts = append $mounts (merge $source (dict "name" "store" "mountPath" "/var/lib/postback")) }}
{{- end }}
{{- end }}
{{- $sources := dict }}
{{- if and (eq .component "worker") (include "postback.hasRegistry" .root) }}
{{- $_ := set $sources "models" (dict "configMap" (dict "name" (default (printf "%s-models" (include "postback.fullname" .root)) $values.models.existingConfigMap))) }}
{{- end }}
{{- range $name, $secret := include "postback.secrets" . | fromYaml }}
{{- if $secret }}
{{- $_ := set $sources $name (dict "secret" (dict "secretName" $secret "defaultMode" 0440)) }}
{{- end }}
{{- end }}
{{- range $name, $source := $sources }}
{{- $mounts = append $mounts (dict "name" $name "mountPath" (printf "/etc/postback/%s" $name) "readOnly" true "volume" $source) }}
{{- end }}
{{- toJson $mounts }}
{{- end }}

{{/* The Secrets of a container by the folders of `/etc/postback` in which they lie. */}}
{{- define "postback.secrets" -}}
{{- with .root.Values }}
{{- if not (has $.component (list "download" "ready")) }}
kafka: {{ ternary .kafka.tls.existingSecret "" .kafka.tls.enabled | quote }}
{{- end }}
{{- if has $.component (list "delivery" "gateway") }}
keyring: {{ .keyring.existingSecret | quote }}
{{- end }}
{{- if has $.component (list "worker" "gateway") }}
trust: {{ .trust.existingSecret | quote }}
{{- end }}
{{- if eq $.component "gateway" }}
door: {{ include "postback.gateway.tlsSecret" $.root | quote }}
client-ca: {{ .gateway.tls.clientCA.existingSecret | quote }}
pepper: {{ .gateway.pepper.existingSecret | quote }}
{{- end }}
{{- end }}
{{- end }}
