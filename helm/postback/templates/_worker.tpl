{{- define "postback.hasRegistry" -}}
{{- if or .Values.models.registry .Values.models.existingConfigMap }}yes{{ end }}
{{- end }}

{{/* Ends the rendering where a worker could not start. Takes a dict of root and role. */}}
{{- define "postback.checkWorker" -}}
{{- if and .root.Values.models.registry .root.Values.models.existingConfigMap }}
{{- fail "models.existingConfigMap: models.registry is set too; set one of the two" }}
{{- end }}
{{- if include "postback.hasRegistry" .root }}
{{- if .role.model }}
{{- fail "worker.model: the model registry names the models; leave worker.model empty" }}
{{- end }}
{{- else }}
{{- include "postback.checkModel" .role }}
{{- end }}
{{- if and .role.cache.existingClaim .role.cache.claimSize }}
{{- fail "worker.cache.claimSize: worker.cache.existingClaim is set too; set one of the two" }}
{{- end }}
{{- if and .role.download.enabled (not .role.download.models) (not .role.model) }}
{{- fail "worker.download.models: no model is named; name the models to download" }}
{{- end }}
{{- end }}

{{/* Ends the rendering where an engine needs a model, and none is named. Takes the role's values. */}}
{{- define "postback.checkModel" -}}
{{- $variable := printf "POSTBACK_ENGINE__%s__MODEL" (upper .engine) }}
{{- $told := or .model .extraEnvFrom (has "--model" .extraArgs) }}
{{- range .extraEnv }}
{{- $told = or $told (eq .name $variable) }}
{{- end }}
{{- if not (or $told (has .engine (list "echo"))) }}
{{- fail (printf "worker.model: the engine %s needs one; name it there, or as %s in worker.extraEnv" .engine $variable) }}
{{- end }}
{{- end }}

{{- define "postback.worker.args" -}}
{{- $args := list "worker" }}
{{- if not (include "postback.hasRegistry" .root) }}
{{- $args = concat $args (list "--engine" .role.engine) }}
{{- with .role.model }}
{{- $args = concat $args (list "--model" .) }}
{{- end }}
{{- end }}
{{- $args | toJson }}
{{- end }}

{{- define "postback.worker.env" -}}
- name: POSTBACK_WORKER__DRAIN_SECONDS
  value: {{ .role.drainSeconds | quote }}
# A worker makes no callbacks, but rejects a job whose callback could never be made.
{{ include "postback.egressEnv" .root }}
- name: POSTBACK_EGRESS__ALLOW_FETCH
  value: {{ join "," .root.Values.egress.allowFetch | quote }}
{{- with .role.lane }}
- name: POSTBACK_WORKER__LANE
  value: {{ . | quote }}
{{- end }}
{{- if include "postback.hasRegistry" .root }}
- name: POSTBACK_WORKER__REGISTRY
  value: /etc/postback/models/models.toml
{{- end }}
{{- with include "postback.worker.parallel" . | trim }}
{{ . }}
{{- end }}
{{- with .role.apiKey }}
{{- if .existingSecret }}
{{ include "postback.secretEnv" (dict "name" (printf "POSTBACK_ENGINE__%s__API_KEY" (upper $.role.engine)) "secret" .existingSecret "key" .key) }}
{{- end }}
{{- end }}
{{ include "postback.worker.hubToken" .role }}
{{- with .root.Values.redis }}
{{- if .existingSecret }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_CACHE__REDIS_URL" "secret" .existingSecret "key" .key) }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_DELTAS__REDIS_URL" "secret" .existingSecret "key" .key) }}
{{- end }}
{{- end }}
{{ include "postback.trustEnv" .root }}
{{- if .root.Values.trust.required }}
- name: POSTBACK_WORKER__TRUST
  value: signed
{{- end }}
{{- end }}

{{/*
A pod of several GPUs: without this variable, vLLM would use one of them. `extraEnv` may name another shape, which has
to use all of them. Takes a dict of root and role.
*/}}
{{- define "postback.worker.parallel" -}}
{{- $variable := "POSTBACK_ENGINE__VLLM__EXTRA" }}
{{- $gpus := int .role.gpus }}
{{- $registry := include "postback.hasRegistry" .root }}
{{- if and (gt $gpus 1) (or $registry (eq .role.engine "vllm")) }}
{{- $told := false }}
{{- range .role.extraEnv }}
{{- if eq .name $variable }}
{{- $told = true }}
{{- if and .value (not $registry) }}
{{- $extra := fromJson .value }}
{{- $used := 1 }}
{{- range list "tensor" "pipeline" "data" }}
{{- $used = mul $used (dig (printf "%s_parallel_size" .) 1 $extra | int) }}
{{- end }}
{{- if ne $used $gpus }}
{{- fail (printf "worker.gpus: the pod has %d GPUs, and vLLM would use %d of them; change worker.gpus or %s" $gpus $used $variable) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .role.extraEnvFrom (not $told) }}
{{- fail (printf "worker.gpus: with worker.extraEnvFrom, tell vLLM in worker.extraEnv how to use %d GPUs: %s, such as {\"tensor_parallel_size\": %d}" $gpus $variable $gpus) }}
{{- end }}
{{- if not $told }}
- name: {{ $variable }}
  value: {{ dict "tensor_parallel_size" $gpus | toJson | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postback.worker.hubToken" -}}
{{- if .hubToken.existingSecret }}
{{- include "postback.secretEnv" (dict "name" "HF_TOKEN" "secret" .hubToken.existingSecret "key" .hubToken.key) }}
{{- end }}
{{- end }}

{{- define "postback.worker.mounts" -}}
{{- if include "postback.hasRegistry" .root }}
- name: models
  mountPath: /etc/postback/models
  readOnly: true
{{- end }}
{{ include "postback.secretMount" (dict "name" "trust" "secret" .root.Values.trust.existingSecret) | trim }}
{{- end }}

{{- define "postback.worker.volumes" -}}
{{- if include "postback.hasRegistry" .root }}
- name: models
  configMap:
    name: {{ default (printf "%s-models" (include "postback.fullname" .root)) .root.Values.models.existingConfigMap }}
{{- end }}
{{ include "postback.secretVolume" (dict "name" "trust" "secret" .root.Values.trust.existingSecret) | trim }}
{{- end }}

{{- define "postback.worker.claims" -}}
{{- with .role.cache }}
{{- if .claimSize }}
{{- include "postback.claim" (dict "name" "cache" "size" .claimSize "class" .storageClassName) }}
{{- end }}
{{- end }}
{{- end }}

{{/* An init container for each model. They run one after the other, and a model that is there is not downloaded again. */}}
{{- define "postback.worker.downloads" -}}
{{- if .role.download.enabled }}
{{- range $number, $model := default (list .role.model) .role.download.models }}
{{- $parts := splitn "@" 2 $model }}
- name: download-{{ $number }}
  image: {{ include "postback.image" (dict "root" $.root "image" $.role.image) | quote }}
  imagePullPolicy: {{ include "postback.pullPolicy" (dict "root" $.root "image" $.role.image) }}
  command:
    {{- toYaml $.role.download.command | nindent 4 }}
  args:
    - {{ $parts._0 | quote }}
    {{- with $parts._1 }}
    - --revision
    - {{ . | quote }}
    {{- end }}
  env:
    {{- with include "postback.worker.hubToken" $.role | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $.role.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $.role.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    requests: {cpu: 500m, memory: 512Mi}
    limits: {memory: 2Gi}
  securityContext:
    {{- toYaml $.root.Values.containerSecurityContext | nindent 4 }}
  volumeMounts:
    - name: cache
      mountPath: /var/cache/postback
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
{{- end }}
