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

{{- define "postback.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{/* Both take a dict of root and component. */}}
{{- define "postback.selectorLabels" -}}
app.kubernetes.io/name: {{ include "postback.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "postback.labels" -}}
{{ include "postback.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "postback.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "postback.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

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
- name: POSTBACK_KAFKA__EXTRA__SASL_USERNAME
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ .usernameKey }}
- name: POSTBACK_KAFKA__EXTRA__SASL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ .passwordKey }}
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

{{/* Ends the rendering where a worker could not start: its engine needs a model, and none is named. */}}
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

{{/* What both roles are: a StatefulSet, since a replica's identity has to outlive its pod, and the headless Service that
     a StatefulSet has. Takes a dict of root, component, role (the role's values), args, env, mounts and volumes. */}}
{{- define "postback.role" -}}
{{- $root := .root }}
{{- $role := .role }}
{{- $name := printf "%s-%s" (include "postback.fullname" $root) .component }}
{{- $resources := deepCopy $role.resources }}
{{- if .gpus }}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (.gpus | int)) (default dict $resources.limits)) }}
{{- end -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels:
    {{- include "postback.labels" . | nindent 4 }}
spec:
  clusterIP: None
  # Also what is not ready has metrics, and they say why.
  publishNotReadyAddresses: true
  selector:
    {{- include "postback.selectorLabels" . | nindent 4 }}
  ports:
    - name: metrics
      port: 9100
      targetPort: metrics
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  labels:
    {{- include "postback.labels" . | nindent 4 }}
spec:
  {{- if not $role.autoscaling.enabled }}
  replicas: {{ $role.replicas }}
  {{- end }}
  serviceName: {{ $name }}
  # Replicas are peers: none waits for another, neither to start nor to stop.
  podManagementPolicy: Parallel
  selector:
    matchLabels:
      {{- include "postback.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "postback.labels" . | nindent 8 }}
        {{- with $role.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $role.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "postback.fullname" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      # drain + margin: SIGKILL in the middle of a drain would cost nothing that was promised, but a repeat of the work.
      terminationGracePeriodSeconds: {{ add $role.drainSeconds $role.marginSeconds }}
      securityContext:
        {{- include "postback.podSecurityContext" $root | nindent 8 }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $role.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "postback.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            {{- toYaml (concat .args (list "--host" "0.0.0.0" "--metrics-port" "9100") $role.extraArgs) | nindent 12 }}
          env:
            - name: POSTBACK_REPLICA
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            - name: POSTBACK_{{ upper .component }}__DRAIN_SECONDS
              value: {{ $role.drainSeconds | quote }}
            {{- include "postback.fleetEnv" $root | nindent 12 }}
            {{- with .env }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $role.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $role.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - name: metrics
              containerPort: 9100
          # /healthz is 503 until the model is loaded, which takes minutes; liveness counts from then on.
          startupProbe:
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 5
            failureThreshold: {{ max 1 (div (add $role.startupSeconds 4) 5) }}
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
            {{- toYaml $resources | nindent 12 }}
          securityContext:
            {{- include "postback.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            - name: cache
              mountPath: /var/cache/postback
            - name: tmp
              mountPath: /tmp
            {{- with $role.shmSize }}
            - name: shm
              mountPath: /dev/shm
            {{- end }}
            {{- with include "postback.kafkaMounts" $root }}
            {{- . | trim | nindent 12 }}
            {{- end }}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $role.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: cache
          {{- if $role.cache.existingClaim }}
          persistentVolumeClaim:
            claimName: {{ $role.cache.existingClaim }}
          {{- else }}
          emptyDir:
            sizeLimit: {{ $role.cache.sizeLimit }}
          {{- end }}
        - name: tmp
          emptyDir:
            sizeLimit: 1Gi
        {{- with $role.shmSize }}
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: {{ . }}
        {{- end }}
        {{- with include "postback.kafkaVolumes" $root }}
        {{- . | trim | nindent 8 }}
        {{- end }}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $role.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      topologySpreadConstraints:
        {{- if $role.topologySpreadConstraints }}
        {{- toYaml $role.topologySpreadConstraints | nindent 8 }}
        {{- else }}
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "postback.selectorLabels" $ | nindent 14 }}
        {{- end }}
        {{- end }}
      {{- with $role.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "postback.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $role.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "postback.selectorLabels" . | nindent 6 }}
{{- end }}
