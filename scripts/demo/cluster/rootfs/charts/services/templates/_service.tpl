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
      # Each launch has its pods on the same nodes, whichever are ready first: replicas are on a node each, what is there once is on the
      # control plane's. So the figures of launches can be compared.
      {{- with $values.replicas }}
      topologySpreadConstraints:
        - maxSkew: 1
          minDomains: {{ . }}
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: DoNotSchedule
          labelSelector: {matchLabels: {app: {{ $.name }}}}
      {{- else }}
      nodeSelector: {node-role.kubernetes.io/control-plane: ""}
      {{- end }}
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
