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

{{- define "postback.serviceAccountName" -}}
{{- default (ternary (include "postback.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* Takes a dict of root and role, whose image replaces values of the chart's. If the repository or the tag is replaced, the chart's digest is not used. */}}
{{- define "postback.image" -}}
{{- $own := default dict .role.image }}
{{- $shared := .root.Values.image }}
{{- if or $own.repository $own.tag }}
{{- $shared = omit $shared "digest" }}
{{- end }}
{{- $image := merge (deepCopy $own) $shared }}
{{- $repository := required "image.repository: name the image that you built and pushed, such as registry.example/postback (docs/DEPLOY.md, Kubernetes)" $image.repository }}
{{- if $image.digest }}
{{- printf "%s@%s" $repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* These take a dict of root, component and pool, which may be absent. */}}
{{- define "postback.selectorLabels" -}}
app.kubernetes.io/name: {{ include "postback.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
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

{{/* An object's metadata. Also takes name, by default the role's, and the object's own labels and annotations. */}}
{{- define "postback.metadata" -}}
name: {{ .name | default (include "postback.roleName" .) }}
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

{{/*
The pools of a component, as a JSON array of dicts of component, pool and role. A role has the values of the component,
those of the pool over them, and the fleet's where it has none; a variable of its own precedes the fleet's of that name.
Takes a dict of root and component.
*/}}
{{- define "postback.pools" -}}
{{- $fleet := .root.Values }}
{{- $component := .component }}
{{- $base := index $fleet $component }}
{{- $pools := list }}
{{- range $pool, $values := default (dict "" dict) $base.pools }}
{{- $role := mergeOverwrite (omit $base "pools" | deepCopy) $values }}
{{- range $field := list "priorityClassName" "nodeSelector" "tolerations" "topologySpreadConstraints" }}
{{- $_ := set $role $field (default (index $fleet $field) (index $role $field)) }}
{{- end }}
{{- $own := dict }}
{{- range $role.extraEnv }}
{{- $_ := set $own .name true }}
{{- end }}
{{- $variables := list }}
{{- range $fleet.extraEnv }}
{{- $variables = ternary $variables (append $variables .) (hasKey $own .name) }}
{{- end }}
{{- $_ := set $role "extraEnv" (concat $variables (default list $role.extraEnv)) }}
{{- $_ := set $role "extraEnvFrom" (concat $fleet.extraEnvFrom (default list $role.extraEnvFrom)) }}
{{- $pools = append $pools (dict "component" $component "pool" $pool "role" $role) }}
{{- end }}
{{- toJson $pools }}
{{- end }}
