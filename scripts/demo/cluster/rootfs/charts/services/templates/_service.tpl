{{- /* A Deployment and its Service. Takes: root, name, port, probe, env. */ -}}
{{- define "service" -}}
{{- $values := index .root.Values .name -}}
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .name }}}
spec:
  replicas: {{ $values.replicas | default 1 }}
  selector: {matchLabels: {app: {{ .name }}}}
  template:
    metadata: {labels: {app: {{ .name }}, part: services}}
    spec:
      enableServiceLinks: false
      terminationGracePeriodSeconds: 2
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: {{ .name }}}}
      # Services run on all nodes, the control plane's too.
      tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists, effect: NoSchedule}]
      containers:
        - name: {{ .name }}
          image: {{ .root.Values.registry }}/{{ .name }}:{{ $values.tag }}
          ports: [{containerPort: {{ .port }}}]
          env: {{ .env | default list | toJson }}
          readinessProbe:
            {{- .probe | toYaml | nindent 12 }}
            periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {name: {{ .name }}}
spec:
  selector: {app: {{ .name }}}
  ports:
    - port: {{ .port }}
      {{- with $values.nodePort }}
      nodePort: {{ . }}
      {{- end }}
  {{- if $values.nodePort }}
  type: NodePort
  {{- end }}
{{- end -}}
