//! The second version of a cluster image: services and root file system are built again, Kubernetes stays what it is.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::Services;

/// Where images are that are built again.
pub(super) const REBUILT: &str = "registry.example/services/";

impl Services {
    /// The cluster image as a plain image.
    pub fn plain(self) -> String {
        format!("{}-plain", self.image())
    }

    /// The second version.
    pub(super) fn second_image(self) -> String {
        format!("{}-2", self.image())
    }

    /// What its container images were saved under.
    pub(super) fn second_saved(self) -> String {
        format!("{}-images", self.second_image())
    }

    /// The second version as a plain image.
    pub(super) fn second_plain(self) -> String {
        format!("{}-plain", self.second_image())
    }

    /// The container images that it needs, each with its stage, in the order of those of the first.
    pub(super) fn second_images(self) -> impl Iterator<Item = (&'static str, Cow<'static, str>)> {
        self.images().map(|(stage, image)| {
            let rebuilt = image.starts_with(REBUILT);
            (stage, if rebuilt { format!("{image}-2").into() } else { image.into() })
        })
    }

    /// What its chart is given in addition to its own values.
    pub(super) fn second_values(self) -> String {
        let mut values = match self {
            Self::Two => self.values(),
            Self::Five => String::new(),
        };
        for (service, image) in self.second_images() {
            if let Some((_, tag)) = image.strip_prefix(REBUILT).and_then(|name| name.split_once(':')) {
                // Writing to a string cannot fail.
                let _ = writeln!(values, "{service}: {{tag: \"{tag}\"}}");
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_version_has_other_services_and_the_same_kubernetes() {
        let images: Vec<_> = Services::Two.second_images().map(|(_, image)| image.into_owned()).collect();
        assert!(images.contains(&"registry.example/services/nginx:1.22-2".to_owned()), "{images:?}");
        assert!(images.contains(&"registry.k8s.io/kube-proxy:v1.37.2".to_owned()), "{images:?}");
        let values = Services::Two.second_values();
        assert!(
            values.contains("tomcat: {enabled: false}\n") && values.contains("nginx: {tag: \"1.22-2\"}\n")
        );
        assert!(Services::Five.second_values().starts_with("nginx: {tag"));
    }
}
