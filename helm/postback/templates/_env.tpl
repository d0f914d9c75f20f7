{{/*
The environment of a container. The templates below write it as a map: a text, or where it comes from. An empty value is
not set, and a variable that the operator names is left to the operator. These take a dict of root, component and role.
*/}}
{{- define "postback.env" -}}
{{- $own := dict }}
{{- range .role.extraEnv }}
{{- $_ := set $own .name true }}
{{- end }}
{{- range $name, $value := include (printf "postback.%s.env" .component) . | fromYaml }}
{{- if and $value (not (hasKey $own $name)) }}
- name: {{ $name }}
  {{ ternary "value" "valueFrom" (kindIs "string" $value) }}: {{ toJson $value }}
{{- end }}
{{- end }}
{{- with .role.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes a section with existingSecret and key. */}}
{{- define "postback.secretKey" -}}
{{- if .existingSecret }}{secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .key | quote }}}}{{ end }}
{{- end }}

{{/* What every process of the fleet has to agree on. */}}
{{- define "postback.fleet.env" -}}
{{- with .root.Values }}
POSTBACK_ENV: {{ .env | quote }}
POSTBACK_KAFKA__BOOTSTRAP_SERVERS: {{ required "kafka.bootstrapServers: where is your Kafka? For example kafka-0.kafka:9092" .kafka.bootstrapServers | quote }}
POSTBACK_KAFKA__TOPIC_PREFIX: {{ .kafka.topicPrefix | quote }}
POSTBACK_KAFKA__PARTITIONS: {{ .kafka.partitions | quote }}
POSTBACK_KAFKA__REPLICATION_FACTOR: {{ .kafka.replicationFactor | quote }}
{{- with .kafka.tierDelaysSeconds }}
POSTBACK_KAFKA__TIER_DELAYS_SECONDS: {{ toJson . | quote }}
{{- end }}
POSTBACK_KAFKA__EXTRA__SECURITY_PROTOCOL: {{ printf "%s%s" (ternary "SASL_" "" (ne .kafka.sasl.mechanism "")) (ternary "SSL" "PLAINTEXT" .kafka.tls.enabled) }}
{{- with .kafka.sasl }}
{{- if .mechanism }}
{{- $secret := required "kafka.sasl.existingSecret: name the Secret that holds the user name and the password" .existingSecret }}
POSTBACK_KAFKA__EXTRA__SASL_MECHANISM: {{ .mechanism }}
POSTBACK_KAFKA__EXTRA__SASL_USERNAME: {{ include "postback.secretKey" (dict "existingSecret" $secret "key" .usernameKey) }}
POSTBACK_KAFKA__EXTRA__SASL_PASSWORD: {{ include "postback.secretKey" (dict "existingSecret" $secret "key" .passwordKey) }}
{{- end }}
{{- end }}
{{- with .kafka.tls }}
{{- if and .enabled .existingSecret }}
POSTBACK_KAFKA__EXTRA__SSL_CA_LOCATION: {{ printf "/etc/postback/kafka/%s" .caKey | quote }}
{{- end }}
{{- if and .enabled .clientCertificate }}
POSTBACK_KAFKA__EXTRA__SSL_CERTIFICATE_LOCATION: /etc/postback/kafka/tls.crt
POSTBACK_KAFKA__EXTRA__SSL_KEY_LOCATION: /etc/postback/kafka/tls.key
{{- end }}
{{- end }}
{{- range $property, $value := .kafka.extra }}
{{- /* A large number reads 1e+06 unless it is made an integer again. */}}
POSTBACK_KAFKA__EXTRA__{{ $property | upper | replace "." "_" }}: {{ ternary ($value | int64 | toString) ($value | toString) (kindIs "float64" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* A replica, which is known by its pod's name, and the addresses that it may reach. */}}
{{- define "postback.replica.env" -}}
{{- include "postback.fleet.env" . }}
POSTBACK_REPLICA: {fieldRef: {fieldPath: metadata.name}}
{{- with .root.Values.egress }}
POSTBACK_EGRESS__ALLOW_CALLBACKS: {{ join "," .allowCallbacks | quote }}
POSTBACK_EGRESS__DENY: {{ join "," .deny | quote }}
POSTBACK_EGRESS__PORTS: {{ join "," .ports | quote }}
{{- end }}
{{- end }}

{{- define "postback.trust.env" -}}
{{- with .root.Values.trust }}
{{- if .existingSecret }}
POSTBACK_TRUST__SECRET_FILE: {{ printf "/etc/postback/trust/%s" .key | quote }}
{{- else if .required }}
{{- fail "trust.existingSecret: workers that take signed jobs only need the secrets; name their Secret" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postback.worker.env" -}}
{{- /* A worker makes no callbacks, but rejects a job whose callback could never be made. */}}
{{- include "postback.replica.env" . }}
{{- include "postback.trust.env" . }}
{{- include "postback.download.env" . }}
POSTBACK_WORKER__DRAIN_SECONDS: {{ .role.drainSeconds | quote }}
POSTBACK_EGRESS__ALLOW_FETCH: {{ join "," .root.Values.egress.allowFetch | quote }}
POSTBACK_WORKER__LANE: {{ .role.lane | quote }}
{{- if include "postback.hasRegistry" .root }}
POSTBACK_WORKER__REGISTRY: /etc/postback/models/models.toml
{{- end }}
{{- with include "postback.worker.parallel" . | trim }}
POSTBACK_ENGINE__VLLM__EXTRA: {{ . | quote }}
{{- end }}
POSTBACK_ENGINE__{{ upper .role.engine }}__API_KEY: {{ include "postback.secretKey" .role.apiKey }}
POSTBACK_CACHE__REDIS_URL: {{ include "postback.secretKey" .root.Values.redis }}
POSTBACK_DELTAS__REDIS_URL: {{ include "postback.secretKey" .root.Values.redis }}
POSTBACK_WORKER__TRUST: {{ ternary "signed" "" .root.Values.trust.required | quote }}
{{- end }}

{{- define "postback.download.env" }}
HF_TOKEN: {{ include "postback.secretKey" .role.hubToken }}
{{- end }}

{{/*
The arguments of vLLM in a pod of several GPUs: without them, it would use one. `extraEnv` may name another shape, which
has to use all of them.
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
{{- dict "tensor_parallel_size" $gpus | toJson }}
{{- end }}
{{- end }}

{{- define "postback.delivery.env" -}}
{{- include "postback.replica.env" . }}
POSTBACK_DELIVERY__DRAIN_SECONDS: {{ .role.drainSeconds | quote }}
POSTBACK_KEYRING: {{ printf "/etc/postback/keyring/%s" .root.Values.keyring.key | quote }}
{{- end }}

{{- define "postback.gateway.env" -}}
{{- include "postback.replica.env" . }}
{{- include "postback.trust.env" . }}
POSTBACK_KEYRING: {{ printf "/etc/postback/keyring/%s" .root.Values.keyring.key | quote }}
POSTBACK_ACCESS__REDIS_URL: {{ include "postback.secretKey" .root.Values.redis }}
POSTBACK_DELTAS__REDIS_URL: {{ include "postback.secretKey" .root.Values.redis }}
POSTBACK_GATEWAY__STOP_SECONDS: {{ .role.drainSeconds | quote }}
{{- with .root.Values.gateway }}
POSTBACK_GATEWAY__PLAIN_HTTP: {{ ternary "" "true" .tls.enabled | quote }}
POSTBACK_GATEWAY__CLIENT_CERTIFICATES: {{ ternary "required" "" .tls.clientCA.required | quote }}
POSTBACK_STORE__URL: {{ include "postback.secretKey" .store | default "sqlite:////var/lib/postback/gateway.db" }}
POSTBACK_ACCESS__PEPPER_FILE: {{ ternary (printf "/etc/postback/pepper/%s" .pepper.key) "" (ne .pepper.existingSecret "") | quote }}
POSTBACK_FILES__PLACE: {{ default "/var/lib/postback/files" .files.place | quote }}
{{- end }}
{{- end }}

{{/* The exporter has the widest bounds of all pools that scale; each pool's ScaledObject also has the pool's own. */}}
{{- define "postback.exporter.env" -}}
{{- include "postback.fleet.env" . }}
{{- $least := 10000 }}{{ $most := 0 }}{{ $start := 0 }}{{ $longest := 0 }}
{{- range include "postback.pools" (dict "root" .root "component" "worker") | fromJsonArray }}
{{- with .role.autoscaling }}
{{- if .enabled }}
{{- $least = min $least (int .minReplicas) }}
{{- $most = max $most (int .maxReplicas) }}
{{- $start = max $start (int .startSeconds) }}
{{- $longest = max $longest (int .longestJobSeconds) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $most }}
POSTBACK_EXPORTER__MIN_REPLICAS: {{ $least | quote }}
POSTBACK_EXPORTER__MAX_REPLICAS: {{ $most | quote }}
POSTBACK_EXPORTER__START_SECONDS: {{ $start | quote }}
POSTBACK_EXPORTER__MARGIN_SECONDS: {{ $longest | quote }}
{{- end }}
{{- end }}

{{- define "postback.topics.env" -}}
{{- include "postback.fleet.env" . }}
{{- end }}

{{/* Waits for others, and asks Kafka nothing. */}}
{{- define "postback.ready.env" }}{{ end }}

{{- define "postback.doctor.env" -}}
{{- include "postback.fleet.env" . }}
{{- end }}
