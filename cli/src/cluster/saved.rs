//! Which saved container images a cluster's nodes read lazily, and a package of it has.

use anyhow::{Context as _, bail};
use cluster::launch::{self, task::Images};
use cluster::lock::Lock;
use cluster::saved::{SavedAt, SavedError, SavedImages, bound, images_name};
use image::location::{InFile, Location};
use image::source::Source;
use registry::client::{self, Client};
use registry::{Digest, Reference, Repository};

use crate::stdout::note;

/// Where container images may have been saved.
#[derive(Debug)]
pub(super) enum Candidates {
    /// There.
    Sure(Reference),
    /// Under one of these digests: the cluster image is bound to them.
    Bound(Repository, Vec<Digest>),
    /// There, or nowhere: beside the tag of the cluster image, where only those can put them who can put another image there too.
    Perhaps(Reference),
    /// There, in the package that the cluster is run of.
    Package(Box<launch::PackageSource>),
    /// Nobody says where.
    Nowhere,
}

impl Candidates {
    /// Those of the cluster image that is called `image` and is bound to the images `bound`; `said` is where they are according to the
    /// user.
    pub(super) fn of(image: &Reference, bound: &[Digest], said: Option<&Reference>) -> anyhow::Result<Self> {
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
            None if image.digest().is_none() => Self::Perhaps(images_name(image)?),
            None => Self::Nowhere,
        })
    }

    /// Those of a package; `plain`: they are to be pulled whole.
    pub(super) async fn of_package(
        package: &launch::PackageSource,
        client: &Client,
        plain: bool,
    ) -> anyhow::Result<Self> {
        let path = package.path().display();
        if plain && !package.has_plain() {
            bail!("--plain: {path} has not all container images as they are: save it with --plain");
        }
        let Some(saved) = package.saved().filter(|_| !plain) else { return Ok(Self::Nowhere) };
        let place = InFile { path: package.path().to_owned(), image: None };
        let root = Source::open(&Location::Package(place), client).await?.root().await?;
        let bound = bound(&root.content).with_context(|| package.image().to_string())?;
        let is_bound = |digest: &Digest| bound.is_empty() || bound.contains(digest);
        match saved {
            SavedAt::Package { digest, .. } if !is_bound(digest) => bail!(
                "{path} has the saved images {digest}, and its cluster image is bound to {}: save it again",
                listed(&bound)
            ),
            _ => Ok(Self::Package(Box::new(package.clone()))),
        }
    }

    /// What nodes are told of them, if there are any; `lock` is the cluster image's.
    pub(super) async fn find(self, client: &Client, lock: Option<&Lock>) -> anyhow::Result<Option<Images>> {
        let Some((saved, repository)) = self.saved(client).await? else { return Ok(None) };
        note(&format!("container images are read lazily from {repository}@{}", saved.digest()));
        let mut images = launch::images(&saved, &repository, lock)?;
        images.only_lazily = matches!(&self, Self::Package(package) if !package.has_plain());
        Ok(Some(images))
    }

    /// The images, if there are any, and the repository that has them.
    pub(super) async fn saved(&self, client: &Client) -> anyhow::Result<Option<(SavedImages, Repository)>> {
        let (saved, repository) = match self {
            Self::Nowhere => return Ok(None),
            Self::Perhaps(reference) => match find_beside(client, reference).await? {
                None => return Ok(None),
                Some(saved) => (saved, reference.repository().clone()),
            },
            Self::Sure(reference) => match find(client, reference).await? {
                None => bail!("--images {reference}: nothing was saved there"),
                Some(saved) => (saved, reference.repository().clone()),
            },
            Self::Package(package) => match package.saved() {
                None => return Ok(None),
                Some(place) => (SavedImages::open(place, client).await?, package.repository()?),
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
                        "the saved images that the cluster image is bound to, {}, are not in {repository}: say with --images of cluster \
                         run in which repository they are, or do without them, with --plain, and of cluster save with --no-rafs too",
                        listed(digests)
                    );
                };
                (saved, repository.clone())
            }
        };
        Ok(Some((saved, repository)))
    }
}

async fn find(client: &Client, reference: &Reference) -> anyhow::Result<Option<SavedImages>> {
    let found = SavedImages::find(&SavedAt::Repository(reference.clone()), client).await;
    found.with_context(|| format!("looking for saved images at {reference}"))
}

/// What is next to a cluster image that could be read.
async fn find_beside(client: &Client, reference: &Reference) -> anyhow::Result<Option<SavedImages>> {
    match SavedImages::find(&SavedAt::Repository(reference.clone()), client).await {
        // The cluster image came from a mirror, which does not have these. Its host may be one that is only a name.
        Err(SavedError::Registry(error @ client::Error::Connection { .. })) => {
            note(&format!("saved images are not at {reference}, as far as can be seen: {error}"));
            Ok(None)
        }
        found => found.with_context(|| format!("looking for saved images at {reference}")),
    }
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
                Candidates::Package(_) | Candidates::Nowhere => "nowhere".to_owned(),
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
