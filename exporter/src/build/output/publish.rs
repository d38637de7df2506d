//! What is left for the end: the names.

use image::copy::copy_image;
use image::destination::CopyError;
use image::document::Stored;
use image::location::Location;
use image::source::Source;
use registry::client::PlacedBlobs;
use registry::reference::{Reference, Repository};

use super::{Output, OutputError};
use crate::build::keys::{Beside, Receiver};
use crate::build::target::Target;

impl Output {
    /// The image that no index names: what the build made.
    async fn root(&self) -> Result<Stored, OutputError> {
        let found = {
            let received = self.received();
            let mut roots = received.stored.iter().filter(|(source, _)| !received.named.contains(*source));
            roots.next().map(|(source, stored)| {
                (source.clone(), stored.clone(), received.beside.contains_key(source))
            })
        };
        let (source, stored, beside) = found.ok_or_else(|| OutputError::NoImage { title: self.title() })?;
        // One that is no index's gets one.
        if beside { self.index_of(&source, &stored).await } else { Ok(stored) }
    }

    /// The steps in which the image gets its names: what each is called, and the names.
    fn naming(&self, root: &Stored) -> Vec<(String, &[Reference])> {
        match self.attrs.receiver {
            Receiver::Registry if self.attrs.push && !self.attrs.push_by_digest => {
                let step = |name: &'_ Reference| format!("pushing {name}@{}", root.digest);
                let names = self.attrs.by_repository().into_iter().take(1).flat_map(|(_, names)| names);
                names.map(|name| (step(name), std::slice::from_ref(name))).collect()
            }
            // Under its digest it is there already.
            Receiver::Registry | Receiver::ClientStore => Vec::new(),
            Receiver::ClientArchive => {
                vec![(format!("sending {} to the client", root.digest), &self.attrs.names)]
            }
        }
    }

    /// buildkitd is done: gives the image its names and returns it.
    pub(crate) async fn publish(&self) -> Result<Stored, OutputError> {
        if self.attrs.beside == Beside::Named {
            return self.publish_merged().await;
        }
        let mut root = self.root().await?;
        // Before its name: whoever finds the image finds them.
        let saved = self.embed(&[&root.digest]).await?;
        if !saved.is_empty() {
            root = self.put_index(self.bound(root, &saved)?).await?;
        }
        for (title, names) in self.naming(&root) {
            let step = self.progress.step(self.index, title);
            let published = self.destination().await?.publish(names, Some(&root)).await;
            if let Err(error) = published {
                let error = self.push_error(self.title(), error);
                step.fail(&error.to_string());
                return Err(error);
            }
            step.finish();
        }
        for (named, target) in self.attrs.by_repository().into_iter().skip(1).zip(&self.copies) {
            self.copy(&root, named, target).await?;
        }
        Ok(root)
    }

    /// Copies the image with all that it names to `repository`, where it gets `names`.
    async fn copy(
        &self,
        root: &Stored,
        (repository, names): (&Repository, &[Reference]),
        target: &Target,
    ) -> Result<(), OutputError> {
        // Nothing else is copied than what is in a registry.
        let Some((client, from)) = self.destination().await?.repository() else { return Ok(()) };
        let from = Location::Registry(from.with_digest(root.digest.clone()));
        let step = self.progress.step(self.index, format!("copying {} to {repository}", root.digest));
        let copied = async {
            let to = self.found(target).await?.as_ref();
            let copied = async {
                let source = Source::open(&from, client).await?;
                let (copy, _) = copy_image(&source, to, &PlacedBlobs::default()).await?;
                // Under its digest it is there already.
                let names = if self.attrs.push_by_digest { &[] } else { names };
                to.publish(names, Some(&copy)).await.map_err(CopyError::from)
            };
            copied.await.map_err(|error| OutputError::Copy {
                title: self.title(),
                repository: repository.clone(),
                error: Box::new(error),
            })
        };
        match copied.await {
            Ok(()) => step.finish(),
            Err(error) => {
                step.fail(&error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }
}
