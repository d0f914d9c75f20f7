{{- define "postback.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that "<fullname>-delivery-<ordinal>" and the hash that StatefulSets add to it fit a label. */}}
{{- define "postback.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "postback.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of a role's objects. Takes a dict of root, component and pool. A StatefulSet's label adds a hash to the name: at most 52 characters. */}}
{{- define "postback.roleName" -}}
{{- $name := printf "%s-%s%s" (include "postback.fullname" .root) .component (ternary "" (printf "-%s" .pool) (empty .pool)) }}
{{- if gt (len $name) 52 }}
{{- fail (printf "%s.pools: the name %s has more than 52 characters; shorten the pool's name or set fullnameOverride" .component $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{/* Takes a dict of root and image, the values that replace the chart's. If the repository or the tag is replaced, the chart's digest is not used. */}}
{{- define "postback.image" -}}
{{- $own := default dict .image }}
{{- $shared := .root.Values.image }}
{{- if or $own.repository $own.tag }}
{{- $shared = omit $shared "digest" }}
{{- end }}
{{- $image := merge (deepCopy $own) $shared }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "postback.pullPolicy" -}}
{{- default .root.Values.image.pullPolicy (default dict .image).pullPolicy }}
{{- end }}

{{/* These take a dict of root, component and pool, which may be absent. */}}
{{- define "postback.selectorLabels" -}}
app.kubernetes.io/name: {{ include "postback.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
postback/pool: {{ . }}
{{- end }}
{{- end }}

{{- define "postback.labels" -}}
{{ include "postback.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An object's metadata. Also takes name, and the object's own labels and annotations. */}}
{{- define "postback.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "postback.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A pod template's metadata. Takes a dict of root, component, pool, role, and podLabels of the role's own. */}}
{{- define "postback.podMetadata" -}}
labels:
  {{- include "postback.labels" . | nindent 2 }}
  {{- with merge (dict) (default dict .podLabels) (default dict .role.podLabels) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .role.podAnnotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "postback.serviceAccountName" -}}
{{- default (ternary (include "postback.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* The fields of every pod. Takes a dict of root and role. */}}
{{- define "postback.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
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
{{- end }}

{{/* The pools of a role as JSON: the role's values, with those of each pool over them. Takes a dict of role. */}}
{{- define "postback.pools" -}}
{{- $base := omit .role "pools" }}
{{- $pools := list }}
{{- range $pool, $values := .role.pools }}
{{- $pools = append $pools (dict "pool" $pool "role" (mergeOverwrite (deepCopy $base) $values)) }}
{{- end }}
{{- dict "pools" (default (list (dict "pool" "" "role" $base)) $pools) | toJson }}
{{- end }}
