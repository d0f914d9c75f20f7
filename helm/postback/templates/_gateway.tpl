{{/* True where the SQLite file or clients' files lie on a volume. */}}
{{- define "postback.gateway.hasVolume" -}}
{{- with .Values.gateway }}
{{- if or (not .store.existingSecret) (not .files.place) .storage.existingClaim }}yes{{ end }}
{{- end }}
{{- end }}

{{- define "postback.gateway.tlsSecret" -}}
{{- if .Values.gateway.tls.certManager.enabled -}}
{{ include "postback.fullname" . }}-gateway-tls
{{- else -}}
{{ .Values.gateway.tls.existingSecret }}
{{- end -}}
{{- end }}

{{/* Ends the rendering where a gateway could not work. Takes a dict of root and pools. */}}
{{- define "postback.checkGateway" -}}
{{- $gateway := .root.Values.gateway }}
{{- $pods := 0 }}
{{- $roles := list }}
{{- range .pools }}
{{- $pods = add $pods .role.replicas | int }}
{{- $roles = concat $roles .role.roles }}
{{- end }}
{{- range list "door" "relay" "view" "expansion" }}
{{- if not (has . $roles) }}
{{- fail (printf "gateway.roles: no pod has the part %s; add it to gateway.roles or to a pool" .) }}
{{- end }}
{{- end }}
{{- with $gateway }}
{{- if and .tls.certManager.enabled .tls.existingSecret }}
{{- fail "gateway.tls.existingSecret: gateway.tls.certManager is enabled too; set one of the two" }}
{{- end }}
{{- if not (or .tls.certManager.enabled .tls.existingSecret) }}
{{- fail "gateway.tls.existingSecret: the door speaks TLS only; name a Secret with tls.crt and tls.key, or enable gateway.tls.certManager" }}
{{- end }}
{{- if and .tls.certManager.enabled (not .tls.certManager.issuer.name) }}
{{- fail "gateway.tls.certManager.issuer: cert-manager needs an issuer; name it, such as {name: internal, kind: ClusterIssuer}" }}
{{- end }}
{{- if and .tls.clientCA.required (not .tls.clientCA.existingSecret) }}
{{- fail "gateway.tls.clientCA.existingSecret: clients need a certificate, and no authority is named; name its Secret" }}
{{- end }}
{{- if and .ingress.enabled (not .ingress.host) }}
{{- fail "gateway.ingress.host: the Ingress needs a host; name it" }}
{{- end }}
{{- if and (gt $pods 1) (not .store.existingSecret) }}
{{- fail (printf "gateway.store.existingSecret: SQLite serves one pod and %d are asked for; name a Secret with a PostgreSQL's URL" $pods) }}
{{- end }}
{{- if and .store.existingSecret (not .pepper.existingSecret) }}
{{- fail "gateway.pepper.existingSecret: a PostgreSQL store needs the pepper's Secret; `openssl rand -hex 32` makes a pepper" }}
{{- end }}
{{- if and (gt $pods 1) (not (or .files.place .storage.existingClaim)) }}
{{- fail (printf "gateway.files.place: %d pods share clients' files; name a bucket as s3://BUCKET/PREFIX, or a ReadWriteMany claim in gateway.storage.existingClaim" $pods) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes a dict of root and role. */}}
{{- define "postback.gateway.args" -}}
{{- $tls := .root.Values.gateway.tls }}
{{- $args := list "gateway" "--roles" (join "," .role.roles) }}
{{- if has "door" .role.roles }}
{{- $args = concat $args (list "--port" "8443" "--tls-cert" "/etc/postback/door/tls.crt" "--tls-key" "/etc/postback/door/tls.key") }}
{{- if $tls.clientCA.existingSecret }}
{{- $args = concat $args (list "--client-ca" (printf "/etc/postback/client-ca/%s" $tls.clientCA.key)) }}
{{- end }}
{{- end }}
{{- $args | toJson }}
{{- end }}

{{- define "postback.gateway.env" -}}
{{- $gateway := .root.Values.gateway }}
- name: POSTBACK_GATEWAY__STOP_SECONDS
  value: {{ .role.drainSeconds | quote }}
- name: POSTBACK_KEYRING
  value: /etc/postback/keyring/{{ .root.Values.keyring.key }}
{{ include "postback.egressEnv" .root }}
{{- with $gateway.publicUrl }}
- name: POSTBACK_GATEWAY__PUBLIC_URL
  value: {{ . | quote }}
{{- end }}
{{- if $gateway.tls.clientCA.required }}
- name: POSTBACK_GATEWAY__CLIENT_CERTIFICATES
  value: required
{{- end }}
{{- with $gateway.store }}
{{- if .existingSecret }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_STORE__URL" "secret" .existingSecret "key" .key) }}
{{- else }}
- name: POSTBACK_STORE__URL
  value: sqlite:////var/lib/postback/gateway.db
{{- end }}
{{- end }}
{{- with $gateway.pepper }}
{{- if .existingSecret }}
- name: POSTBACK_ACCESS__PEPPER_FILE
  value: /etc/postback/pepper/{{ .key }}
{{- end }}
{{- end }}
- name: POSTBACK_FILES__PLACE
  value: {{ default "/var/lib/postback/files" $gateway.files.place | quote }}
{{- with .root.Values.redis }}
{{- if .existingSecret }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_ACCESS__REDIS_URL" "secret" .existingSecret "key" .key) }}
{{ include "postback.secretEnv" (dict "name" "POSTBACK_DELTAS__REDIS_URL" "secret" .existingSecret "key" .key) }}
{{- end }}
{{- end }}
{{ include "postback.trustEnv" .root }}
{{- end }}

{{/* The Secrets of a gateway's pods as JSON, by their volumes' names. */}}
{{- define "postback.gateway.secrets" -}}
{{- $gateway := .Values.gateway }}
{{- list
      (dict "name" "keyring" "secret" .Values.keyring.existingSecret)
      (dict "name" "door" "secret" (include "postback.gateway.tlsSecret" .))
      (dict "name" "client-ca" "secret" $gateway.tls.clientCA.existingSecret)
      (dict "name" "pepper" "secret" $gateway.pepper.existingSecret)
      (dict "name" "trust" "secret" .Values.trust.existingSecret)
    | toJson }}
{{- end }}

{{- define "postback.gateway.mounts" -}}
{{- if include "postback.gateway.hasVolume" . }}
- name: store
  mountPath: /var/lib/postback
{{- end }}
{{- range include "postback.gateway.secrets" . | fromJsonArray }}
{{- include "postback.secretMount" . }}
{{- end }}
{{- end }}

{{- define "postback.gateway.volumes" -}}
{{- with .Values.gateway.storage.existingClaim }}
- name: store
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- range include "postback.gateway.secrets" . | fromJsonArray }}
{{- include "postback.secretVolume" . }}
{{- end }}
{{- end }}

{{- define "postback.gateway.claims" -}}
{{- with .Values.gateway.storage }}
{{- if and (include "postback.gateway.hasVolume" $) (not .existingClaim) }}
{{- include "postback.claim" (dict "name" "store" "size" .size "class" .storageClassName) }}
{{- end }}
{{- end }}
{{- end }}
