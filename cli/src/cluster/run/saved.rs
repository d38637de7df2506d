//! Which saved container images a cluster's nodes read lazily.

use anyhow::{Context as _, bail};
use cluster::launch::{self, task::Images};
use cluster::lock::Lock;
use cluster::saved::{SavedAt, SavedImages};
use registry::client::Client;
use registry::{Digest, Reference, Repository};

use crate::stdout::note;

/// What stands behind a cluster image's tag where its build saved its container images.
const IMAGES: &str = "-images";

/// Where container images may have been saved.
#[derive(Debug)]
pub(super) enum Candidates {
    /// There.
    Sure(Reference),
    /// Under one of these digests: the cluster image is bound to them.
    Bound(Repository, Vec<Digest>),
    /// There, or nowhere: beside the tag of the cluster image, where only those can put them who can put another image there too.
    Perhaps(Reference),
    /// Nobody says where.
    Nowhere,
}

impl Candidates {
    /// Those of the cluster image that is called `image` and is bound to the images `bound`; `said` is where they are according to the
    /// user.
    pub(super) fn of(image: &Reference, bound: &[Digest], said: Option<&Reference>) -> anyhow::Result<Self> {
        let beside = |tag: &str| image.repository().with_tag(&format!("{tag}{IMAGES}"));
        Ok(match said {
            Some(said) if said.digest().is_none() && !bound.is_empty() => {
                Self::Bound(said.repository().clone(), bound.to_vec())
            }
            Some(said) => {
                if let Some(digest) =
                    said.digest().filter(|digest| !bound.is_empty() && !bound.contains(digest))
                {
                    bail!(
                        "--images {said}: {image} is bound to other saved images, {}: {digest} is none of them",
                        listed(bound)
                    );
                }
                Self::Sure(said.clone())
            }
            None if !bound.is_empty() => Self::Bound(image.repository().clone(), bound.to_vec()),
            None => match image.tag().filter(|_| image.digest().is_none()) {
                Some(tag) => Self::Perhaps(beside(tag)?),
                None => Self::Nowhere,
            },
        })
    }

    /// What nodes are told of them, if there are any; `lock` is the cluster image's.
    pub(super) async fn find(self, client: &Client, lock: Option<&Lock>) -> anyhow::Result<Option<Images>> {
        let (saved, repository) = match &self {
            Self::Nowhere => return Ok(None),
            Self::Perhaps(reference) => match find(client, reference).await? {
                None => return Ok(None),
                Some(saved) => (saved, reference.repository()),
            },
            Self::Sure(reference) => match find(client, reference).await? {
                None => bail!("--images {reference}: nothing was saved there"),
                Some(saved) => (saved, reference.repository()),
            },
            Self::Bound(repository, digests) => {
                let mut found = None;
                for digest in digests {
                    if found.is_none() {
                        found = find(client, &repository.with_digest(digest.clone())).await?;
                    }
                }
                let Some(saved) = found else {
                    bail!(
                        "the saved images that the cluster image is bound to, {}, are not in {repository}: say with --images in which \
                         repository they are, or have container images pulled whole with --plain",
                        listed(digests)
                    );
                };
                (saved, repository)
            }
        };
        note(&format!("container images are read lazily from {repository}@{}", saved.digest()));
        Ok(Some(launch::images(&saved, repository, lock)?))
    }
}

async fn find(client: &Client, reference: &Reference) -> anyhow::Result<Option<SavedImages>> {
    let found = SavedImages::find(&SavedAt::Repository(reference.clone()), client).await;
    found.with_context(|| format!("looking for saved images at {reference}"))
}

fn listed(digests: &[Digest]) -> String {
    digests.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_bound_come_before_those_beside_the_tag() -> anyhow::Result<()> {
        let digest = registry::digest::sha256(b"x");
        let reference = |text: &str| Reference::parse(text);
        let (bound, none) = (vec![digest.clone()], Vec::new());
        let image = reference("r.example/cluster:v1")?;
        let of = |image: &Reference, bound: &[Digest], said: Option<&str>| -> anyhow::Result<String> {
            let said = said.map(Reference::parse).transpose()?;
            Ok(match Candidates::of(image, bound, said.as_ref())? {
                Candidates::Sure(reference) => format!("sure {reference}"),
                Candidates::Bound(repository, digests) => format!("bound {repository} {}", digests.len()),
                Candidates::Perhaps(reference) => format!("perhaps {reference}"),
                Candidates::Nowhere => "nowhere".to_owned(),
            })
        };
        assert_eq!(of(&image, &none, None)?, "perhaps r.example/cluster:v1-images");
        assert_eq!(of(&image, &bound, None)?, "bound r.example/cluster 1");
        let pinned = reference(&format!("r.example/cluster@{digest}"))?;
        assert_eq!(of(&pinned, &none, None)?, "nowhere");
        assert_eq!(of(&pinned, &bound, None)?, "bound r.example/cluster 1");
        assert_eq!(of(&image, &none, Some("o.example/i:v2"))?, "sure o.example/i:v2");
        // A copy of them elsewhere is the same by its digest, whatever the tag there leads to.
        assert_eq!(of(&image, &bound, Some("o.example/i:v2"))?, "bound o.example/i 1");
        let same = format!("o.example/i@{digest}");
        assert_eq!(of(&image, &bound, Some(&same))?, format!("sure {same}"));
        let other = format!("o.example/i@{}", registry::digest::sha256(b"y"));
        assert!(
            of(&image, &bound, Some(&other)).is_err_and(|error| error.to_string().contains("bound to other"))
        );
        Ok(())
    }
}
