{{- define "postback.securityProtocol" -}}
{{- if .Values.kafka.sasl.mechanism -}}
{{ ternary "SASL_SSL" "SASL_PLAINTEXT" .Values.kafka.tls.enabled }}
{{- else -}}
{{ ternary "SSL" "PLAINTEXT" .Values.kafka.tls.enabled }}
{{- end -}}
{{- end }}

{{/* What every process of the fleet has to agree on. */}}
{{- define "postback.fleetEnv" -}}
- name: POSTBACK_ENV
  value: {{ .Values.env | quote }}
- name: POSTBACK_KAFKA__BOOTSTRAP_SERVERS
  value: {{ required "kafka.bootstrapServers: where is your Kafka? For example kafka-0.kafka:9092" .Values.kafka.bootstrapServers | quote }}
- name: POSTBACK_KAFKA__TOPIC_PREFIX
  value: {{ .Values.kafka.topicPrefix | quote }}
- name: POSTBACK_KAFKA__PARTITIONS
  value: {{ .Values.kafka.partitions | quote }}
- name: POSTBACK_KAFKA__REPLICATION_FACTOR
  value: {{ .Values.kafka.replicationFactor | quote }}
{{- with .Values.kafka.tierDelaysSeconds }}
- name: POSTBACK_KAFKA__TIER_DELAYS_SECONDS
  value: {{ toJson . | quote }}
{{- end }}
- name: POSTBACK_KAFKA__EXTRA__SECURITY_PROTOCOL
  value: {{ include "postback.securityProtocol" . | quote }}
{{- with .Values.kafka.sasl }}
{{- if .mechanism }}
{{- $secret := required "kafka.sasl.existingSecret: name the Secret that holds the user name and the password" .existingSecret }}
- name: POSTBACK_KAFKA__EXTRA__SASL_MECHANISM
  value: {{ .mechanism | quote }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_KAFKA__EXTRA__SASL_USERNAME" "secret" $secret "key" .usernameKey) }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_KAFKA__EXTRA__SASL_PASSWORD" "secret" $secret "key" .passwordKey) }}
{{- end }}
{{- end }}
{{- with .Values.kafka.tls }}
{{- if and .enabled .existingSecret }}
- name: POSTBACK_KAFKA__EXTRA__SSL_CA_LOCATION
  value: /etc/postback/kafka/{{ .caKey }}
{{- end }}
{{- if and .enabled .clientCertificate }}
- name: POSTBACK_KAFKA__EXTRA__SSL_CERTIFICATE_LOCATION
  value: /etc/postback/kafka/tls.crt
- name: POSTBACK_KAFKA__EXTRA__SSL_KEY_LOCATION
  value: /etc/postback/kafka/tls.key
{{- end }}
{{- end }}
{{- range $property, $value := .Values.kafka.extra }}
- name: POSTBACK_KAFKA__EXTRA__{{ $property | upper | replace "." "_" }}
  {{- /* A large number reads 1e+06 unless it is made an integer again. */}}
  value: {{ ternary ($value | int64 | toString) ($value | toString) (kindIs "float64" $value) | quote }}
{{- end }}
{{- end }}

{{/* An environment variable from a Secret. Takes a dict of name, secret and key. */}}
{{- define "postback.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}

{{/* The secrets that sign jobs, for workers and the gateway. */}}
{{- define "postback.trustEnv" -}}
{{- if .Values.trust.existingSecret }}
- name: POSTBACK_TRUST__SECRET_FILE
  value: /etc/postback/trust/{{ .Values.trust.key }}
{{- else if .Values.trust.required }}
{{- fail "trust.existingSecret: workers that take signed jobs only need the secrets; name their Secret" }}
{{- end }}
{{- end }}

{{/* Each Secret is mounted whole, without subPath, so that a changed one reaches running pods; its files are readable by
     the pod's group, and closed to others. Takes a dict of name, path and secret. */}}
{{- define "postback.secretMount" -}}
{{- if .secret }}
- name: {{ .name }}
  mountPath: /etc/postback/{{ .name }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "postback.secretVolume" -}}
{{- if .secret }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "postback.egressEnv" -}}
- name: POSTBACK_EGRESS__ALLOW_CALLBACKS
  value: {{ join "," .Values.egress.allowCallbacks | quote }}
- name: POSTBACK_EGRESS__DENY
  value: {{ join "," .Values.egress.deny | quote }}
- name: POSTBACK_EGRESS__PORTS
  value: {{ join "," .Values.egress.ports | quote }}
{{- end }}

{{- define "postback.kafkaMounts" -}}
{{- if and .Values.kafka.tls.enabled .Values.kafka.tls.existingSecret }}
- name: kafka-tls
  mountPath: /etc/postback/kafka
  readOnly: true
{{- end }}
{{- end }}

{{- define "postback.kafkaVolumes" -}}
{{- if and .Values.kafka.tls.enabled .Values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ .Values.kafka.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}

