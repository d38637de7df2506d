//! Secrets of the types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::client::{Credentials, DockerAuths};

use super::api::Secret;

/// The credentials of a pull secret.
pub(super) struct PullSecret(DockerAuths);

impl PullSecret {
    pub(super) fn parse(secret: &Secret) -> Result<Self, String> {
        let (key, is_legacy) = match secret.kind.as_str() {
            "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", false),
            "kubernetes.io/dockercfg" => (".dockercfg", true),
            other => {
                return Err(format!(
                    "its type is {other:?}; expected kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
                ));
            }
        };
        let bad = |reason: String| format!("{key}: {reason}");
        let data = secret.data.get(key).ok_or_else(|| bad("it is not there".to_owned()))?;
        let text = STANDARD.decode(data.trim()).map_err(|error| bad(error.to_string()))?;
        let auths = if is_legacy { DockerAuths::of_dockercfg(&text) } else { DockerAuths::of_config(&text) };
        Ok(Self(auths.map_err(|error| bad(error.to_string()))?))
    }

    /// What it has for a host's repository, the most particular first.
    pub(super) fn of(&self, host: &str, repository: &str) -> Vec<Result<Credentials, String>> {
        self.0.of(host, repository)
    }
}
