{{/* A StatefulSet with its headless Service and its disruption budget. A replica's identity has to outlive its pod, so
     it is no Deployment. Takes a dict of root, component, pool, role (the role's values), args, and of lines of YAML:
     env, ports, mounts, volumes and claims. */}}
{{- define "postback.role" -}}
{{- $name := include "postback.roleName" . }}
apiVersion: v1
kind: Service
metadata:
  {{- include "postback.metadata" (merge (dict "name" $name) .) | nindent 2 }}
spec:
  clusterIP: None
  # Pods that are not ready also have metrics, which show the reason.
  publishNotReadyAddresses: true
  selector:
    {{- include "postback.selectorLabels" . | nindent 4 }}
  ports:
    - name: metrics
      port: 9464
      targetPort: metrics
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "postback.metadata" (merge (dict "name" $name) .) | nindent 2 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false .role) }}
  replicas: {{ .role.replicas }}
  {{- end }}
  serviceName: {{ $name }}
  # Replicas are peers: none waits for another, neither to start nor to stop.
  podManagementPolicy: Parallel
  updateStrategy:
    {{- toYaml .role.updateStrategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "postback.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      {{- include "postback.podMetadata" . | nindent 6 }}
    spec:
      {{- include "postback.rolePod" . | nindent 6 }}
  {{- with .claims }}
  volumeClaimTemplates:
    {{- . | nindent 4 }}
  {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "postback.metadata" (merge (dict "name" $name) .) | nindent 2 }}
spec:
  maxUnavailable: {{ .role.podDisruptionBudget.maxUnavailable }}
  # A pod that is not ready may be evicted: it would otherwise block the drain of its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "postback.selectorLabels" . | nindent 6 }}
{{- end }}

{{- define "postback.rolePod" -}}
serviceAccountName: {{ include "postback.serviceAccountName" .root }}
# drain + margin: SIGKILL during a drain breaks no promise, but the work has to be repeated.
terminationGracePeriodSeconds: {{ add .role.drainSeconds .role.marginSeconds }}
{{ include "postback.pod" . }}
{{- with .initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .component }}
    {{- include "postback.roleContainer" . | nindent 4 }}
  {{- with .role.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- include "postback.roleVolumes" . | nindent 2 }}
{{- with .role.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "postback.roleContainer" -}}
{{- $resources := deepCopy .role.resources }}
{{- if .role.gpus }}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (.role.gpus | int)) (default dict $resources.limits)) }}
{{- end -}}
image: {{ include "postback.image" (dict "root" .root "image" .role.image) | quote }}
imagePullPolicy: {{ include "postback.pullPolicy" (dict "root" .root "image" .role.image) }}
args:
  {{- toYaml (concat .args (list "--host" "0.0.0.0" "--metrics-port" "9464") .role.extraArgs) | nindent 2 }}
env:
  - name: POSTBACK_REPLICA
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- include "postback.fleetEnv" .root | nindent 2 }}
  {{- .env | trim | nindent 2 }}
  {{- with .role.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .role.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: metrics
    containerPort: 9464
  {{- with .ports }}
  {{- . | nindent 2 }}
  {{- end }}
# /healthz is 503 until the model is loaded, which takes minutes; liveness counts from then on.
startupProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (add .role.startupSeconds 4) 5) }}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
resources:
  {{- toYaml $resources | nindent 2 }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  - name: cache
    mountPath: /var/cache/postback
  - name: tmp
    mountPath: /tmp
  {{- if .role.shmSize }}
  - name: shm
    mountPath: /dev/shm
  {{- end }}
  {{- with include "postback.kafkaMounts" .root }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with .mounts | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .role.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "postback.roleVolumes" -}}
{{- if .role.cache.existingClaim }}
- name: cache
  persistentVolumeClaim:
    claimName: {{ .role.cache.existingClaim }}
{{- else if not .role.cache.claimSize }}
- name: cache
  emptyDir:
    sizeLimit: {{ .role.cache.sizeLimit }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- with .role.shmSize }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ . }}
{{- end }}
{{- with include "postback.kafkaVolumes" .root }}
{{- . | trim | nindent 0 }}
{{- end }}
{{- with .volumes | trim }}
{{- . | nindent 0 }}
{{- end }}
{{- with .role.extraVolumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* A claim for each pod. Takes a dict of name, size and class. */}}
{{- define "postback.claim" -}}
- metadata:
    name: {{ .name }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .class }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}
