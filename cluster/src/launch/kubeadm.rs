//! What kubeadm is given: the image's own documents (`etc/kubeadm.yaml`), with what only a node knows put in.

use serde_json::{Map, Value, json};

use super::error::LaunchError;
use yaml::Value as Yaml;

/// Where an image has its documents.
pub(super) const OVERLAY: &str = "etc/kubeadm.yaml";
const API_VERSION: &str = "kubeadm.k8s.io/v1beta4";
const CRI_SOCKET: &str = "unix:///run/containerd/containerd.sock";
/// Aliases name a value again and again: what they unfold to is counted.
const VALUES_LIMIT: usize = 100_000;

/// kubeadm's configuration of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Documents(Vec<Value>);

impl Documents {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When the text is no YAML of objects.
    pub(super) fn parse(text: &str) -> Result<Self, LaunchError> {
        let parsed = yaml::parse(text);
        if let Some(error) = parsed.errors.first() {
            return Err(LaunchError::wrong(format!("{OVERLAY}:{}", error.line), error.reason.clone()));
        }
        let mut documents = Vec::new();
        for document in &parsed.documents {
            let (root, mut left) = (document.root(), VALUES_LIMIT);
            if root.is_null() {
                continue;
            }
            let value = to_json(root, &mut left).filter(|value| value["kind"].is_string());
            let place = || format!("{OVERLAY}:{}", root.line());
            documents
                .push(value.ok_or_else(|| LaunchError::wrong(place(), "expected an object with a kind"))?);
        }
        Ok(Self(documents))
    }

    /// The documents for `kubeadm init`. The control plane is found at `endpoint`, where the image does not say where.
    pub(super) fn init(&self, address: Option<&str>, endpoint: Option<&str>) -> String {
        let mut init = self.own("InitConfiguration");
        if let Some(address) = address {
            init["localAPIEndpoint"]["advertiseAddress"] = address.into();
        }
        let mut cluster = self.of_kind("ClusterConfiguration");
        if let Some(endpoint) = endpoint.filter(|_| cluster["controlPlaneEndpoint"].is_null()) {
            cluster["controlPlaneEndpoint"] = endpoint.into();
        }
        let own = ["InitConfiguration", "JoinConfiguration", "ClusterConfiguration"];
        let others = self.0.iter().filter(|document| !own.iter().any(|kind| document["kind"] == *kind));
        let documents = [&init, &cluster].into_iter().chain(others);
        documents.map(|document| format!("---\n{document}\n")).collect()
    }

    /// The document for `kubeadm join`, with the discovery file at `discovery`; for a node that joins the control plane, with its address,
    /// if that is known.
    pub(super) fn join(&self, discovery: &str, token: &str, control_plane: Option<Option<&str>>) -> String {
        let mut join = self.own("JoinConfiguration");
        if let Some(address) = control_plane {
            let endpoint = address.map_or_else(|| json!({}), |address| json!({"advertiseAddress": address}));
            join["controlPlane"]["localAPIEndpoint"] = endpoint;
        }
        join["discovery"] = json!({"file": {"kubeConfigPath": discovery}, "tlsBootstrapToken": token});
        format!("{join}\n")
    }

    /// The image's document of this kind, or a new one, for containerd.
    fn own(&self, kind: &str) -> Value {
        let mut own = self.of_kind(kind);
        if own["nodeRegistration"]["criSocket"].is_null() {
            own["nodeRegistration"]["criSocket"] = CRI_SOCKET.into();
        }
        own
    }

    /// The image's document of this kind, or a new one.
    fn of_kind(&self, kind: &str) -> Value {
        let found = self.0.iter().find(|document| document["kind"] == kind).cloned();
        found.unwrap_or_else(|| json!({"apiVersion": API_VERSION, "kind": kind}))
    }
}

/// The value as JSON; none if it is too large or has keys that are no strings.
fn to_json(value: Yaml<'_>, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    if value.is_mapping() {
        let mut object = Map::new();
        for (key, member) in value.entries() {
            object.insert(key.text()?.to_owned(), to_json(member, left)?);
        }
        return Some(object.into());
    }
    let Some(text) = value.text() else {
        return value.items().map(|item| to_json(item, left)).collect::<Option<Vec<_>>>().map(Value::from);
    };
    if value.is_null() {
        return Some(Value::Null);
    }
    if let Some(text) = value.string() {
        return Some(text.into());
    }
    Some(match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => true.into(),
        "false" | "no" | "off" => false.into(),
        _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n---\n\
                        kind: KubeletConfiguration\nfailSwapOn: false\nmaxOpenFiles: 20000\n---\n\
                        kind: JoinConfiguration\nnodeRegistration: {taints: []}\n";

    #[test]
    fn the_images_documents_are_kept_and_a_nodes_own_are_put_in() {
        let documents = Documents::parse(TEXT).unwrap();
        let init = documents.init(Some("10.0.0.1"), Some("10.0.0.1"));
        let init: Vec<Value> = init
            .split("---\n")
            .filter(|text| !text.is_empty())
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        assert_eq!(init.len(), 3);
        assert_eq!(init[0]["localAPIEndpoint"], json!({"advertiseAddress": "10.0.0.1"}));
        assert_eq!(init[0]["apiVersion"], API_VERSION);
        assert_eq!(init[1]["kubernetesVersion"], "v1.37.2");
        assert_eq!(init[1]["controlPlaneEndpoint"], "10.0.0.1");
        assert_eq!(
            init[2],
            json!({"kind": "KubeletConfiguration", "failSwapOn": false, "maxOpenFiles": 20000})
        );

        let join: Value = serde_json::from_str(&documents.join("/d", "a.b", None)).unwrap();
        assert_eq!(join["nodeRegistration"], json!({"taints": [], "criSocket": CRI_SOCKET}));
        assert_eq!(join["discovery"], json!({"file": {"kubeConfigPath": "/d"}, "tlsBootstrapToken": "a.b"}));
    }

    #[test]
    fn a_node_that_joins_the_control_plane_says_where_it_is_reached() {
        let documents =
            Documents::parse("kind: ClusterConfiguration\ncontrolPlaneEndpoint: api.example:6443\n").unwrap();
        assert!(
            documents.init(None, Some("10.0.0.1")).contains("\"controlPlaneEndpoint\":\"api.example:6443\"")
        );
        let join = |address| serde_json::from_str::<Value>(&documents.join("/d", "a.b", address)).unwrap();
        assert_eq!(join(None)["controlPlane"], Value::Null);
        assert_eq!(join(Some(None))["controlPlane"], json!({"localAPIEndpoint": {}}));
        let address = json!({"localAPIEndpoint": {"advertiseAddress": "10.0.0.2"}});
        assert_eq!(join(Some(Some("10.0.0.2")))["controlPlane"], address);
    }

    #[test]
    fn what_is_no_document_is_named_by_its_line() {
        let wrong = |text: &str| Documents::parse(text).unwrap_err().to_string();
        assert!(wrong("kind: A\n---\n- 1\n").starts_with("etc/kubeadm.yaml:3: expected an object"));
        assert!(wrong("kind: [\n").starts_with("etc/kubeadm.yaml:"));
    }
}
