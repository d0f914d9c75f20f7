{{/* The arguments of each role's command as JSON, and checks that end the rendering where a role could not work. These take a dict of root, pool and role. */}}
{{- define "postback.hasRegistry" -}}
{{- if or .Values.models.registry .Values.models.existingConfigMap }}yes{{ end }}
{{- end }}

{{- define "postback.worker.args" -}}
{{- include "postback.worker.check" . }}
{{- $args := list "worker" }}
{{- if not (include "postback.hasRegistry" .root) }}
{{- $args = concat $args (list "--engine" .role.engine) }}
{{- with .role.model }}
{{- $args = concat $args (list "--model" .) }}
{{- end }}
{{- end }}
{{- $args | toJson }}
{{- end }}

{{- define "postback.worker.check" -}}
{{- if and .root.Values.models.registry .root.Values.models.existingConfigMap }}
{{- fail "models.existingConfigMap: models.registry is set too; set one of the two" }}
{{- end }}
{{- if include "postback.hasRegistry" .root }}
{{- if .role.model }}
{{- fail "worker.model: the model registry names the models; leave worker.model empty" }}
{{- end }}
{{- else }}
{{- include "postback.worker.checkModel" .role }}
{{- end }}
{{- if and .role.cache.existingClaim .role.cache.claimSize }}
{{- fail "worker.cache.claimSize: worker.cache.existingClaim is set too; set one of the two" }}
{{- end }}
{{- if and .role.download.enabled (not .role.download.models) (not .role.model) }}
{{- fail "worker.download.models: no model is named; name the models to download" }}
{{- end }}
{{- end }}

{{/* Takes the role's values. */}}
{{- define "postback.worker.checkModel" -}}
{{- $variable := printf "POSTBACK_ENGINE__%s__MODEL" (upper .engine) }}
{{- $told := or .model .extraEnvFrom (has "--model" .extraArgs) }}
{{- range .extraEnv }}
{{- $told = or $told (eq .name $variable) }}
{{- end }}
{{- if not (or $told (has .engine (list "echo"))) }}
{{- fail (printf "worker.model: the engine %s needs one; name it there, or as %s in worker.extraEnv" .engine $variable) }}
{{- end }}
{{- end }}

{{/* An init container for each model. They run one after the other, and a model that is there is not downloaded again. */}}
{{- define "postback.downloads" -}}
{{- if dig "download" "enabled" false .role }}
{{- $resources := dict "requests" (dict "cpu" "500m" "memory" "512Mi") "limits" (dict "memory" "2Gi") }}
{{- $role := merge (dict "resources" $resources) (omit .role "resources" "gpus" "extraVolumeMounts") }}
{{- range $number, $model := default (list .role.model) .role.download.models }}
{{- $parts := splitn "@" 2 $model }}
- {{ include "postback.container" (dict
        "root" $.root
        "component" "download"
        "role" $role
        "name" (printf "download-%d" $number)
        "command" $role.download.command
        "args" (concat (list $parts._0) (ternary (list "--revision" $parts._1) list (contains "@" $model)))
      ) | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postback.delivery.args" -}}
["deliver"]
{{- end }}

{{- define "postback.gateway.scheme" -}}
{{- ternary "https" "http" .Values.gateway.tls.enabled }}
{{- end }}

{{- define "postback.gateway.tlsSecret" -}}
{{- with .Values.gateway.tls }}
{{- if .enabled }}
{{- ternary (printf "%s-gateway-tls" (include "postback.fullname" $)) .existingSecret .certManager.enabled }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postback.gateway.args" -}}
{{- $tls := .root.Values.gateway.tls }}
{{- $args := list "gateway" "--roles" (join "," .role.roles) }}
{{- if has "door" .role.roles }}
{{- $args = concat $args (list "--port" "8443") }}
{{- if $tls.enabled }}
{{- $args = concat $args (list "--tls-cert" "/etc/postback/door/tls.crt" "--tls-key" "/etc/postback/door/tls.key") }}
{{- end }}
{{- if $tls.clientCA.existingSecret }}
{{- $args = concat $args (list "--client-ca" (printf "/etc/postback/client-ca/%s" $tls.clientCA.key)) }}
{{- end }}
{{- end }}
{{- $args | toJson }}
{{- end }}

{{/* Takes the chart's root. */}}
{{- define "postback.gateway.check" -}}
{{- $pods := 0 }}
{{- $roles := list }}
{{- range include "postback.pools" (dict "root" . "component" "gateway") | fromJsonArray }}
{{- $pods = add $pods .role.replicas | int }}
{{- $roles = concat $roles .role.roles }}
{{- end }}
{{- range list "door" "relay" "view" "expansion" }}
{{- if not (has . $roles) }}
{{- fail (printf "gateway.roles: no pod has the part %s; add it to gateway.roles or to a pool" .) }}
{{- end }}
{{- end }}
{{- with .Values.gateway }}
{{- if and (not .tls.enabled) (or .tls.existingSecret .tls.certManager.enabled .tls.clientCA.existingSecret) }}
{{- fail "gateway.tls.enabled: the door speaks plain HTTP, so it uses no certificates; leave out the other values of gateway.tls" }}
{{- end }}
{{- if and .tls.certManager.enabled .tls.existingSecret }}
{{- fail "gateway.tls.existingSecret: gateway.tls.certManager is enabled too; set one of the two" }}
{{- end }}
{{- if and .tls.enabled (not (or .tls.certManager.enabled .tls.existingSecret)) }}
{{- fail "gateway.tls.existingSecret: the door needs a certificate; name a Secret with tls.crt and tls.key, enable gateway.tls.certManager, or, behind a mesh or an ingress that speaks TLS, disable gateway.tls.enabled" }}
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
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) }}
{{- fail "gateway.httpRoute.parentRefs: the HTTPRoute needs a Gateway; name it, such as [{name: public, namespace: gateways}]" }}
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
