//! Locks, united: whoever runs the merged image needs the images of all of them.

use std::collections::HashMap;

use registry::Reference;

use super::Conflict;
use crate::lock::{Lock, Locked};

/// The locks of images, united.
#[derive(Debug, Default)]
pub(super) struct Locks {
    united: Lock,
    /// Whose lock said first what an image is.
    of: HashMap<Reference, String>,
    /// The image that had the first lock.
    first: Option<String>,
    /// How many images had one.
    count: usize,
}

impl Locks {
    /// Adds the lock of the image `name`.
    ///
    /// # Errors
    ///
    /// When it says something else of an image than one of those before.
    pub(super) fn add(&mut self, name: &str, lock: Lock) -> Result<(), Conflict> {
        match &self.first {
            None => {
                self.first = Some(name.to_owned());
                self.united.platforms = lock.platforms;
            }
            Some(one) if self.united.platforms != lock.platforms => {
                return Err(Conflict::Platforms { one: one.clone(), other: name.to_owned() });
            }
            Some(_) => {}
        }
        for image in lock.images {
            let before = self.united.images.iter_mut().find(|before| before.reference == image.reference);
            match before {
                Some(before) if same(before, &image) => {
                    before.asked_by.extend(image.asked_by);
                    before.asked_by.sort();
                    before.asked_by.dedup();
                }
                Some(_) => return Err(self.conflict(&image, name)),
                None => {
                    self.of.insert(image.reference.clone(), name.to_owned());
                    self.united.images.push(image);
                }
            }
        }
        self.united.images.sort_by_cached_key(|image| image.reference.to_string());
        self.count += 1;
        Ok(())
    }

    /// Whether images that `others` have too are the same ones there.
    ///
    /// # Errors
    ///
    /// [`Conflict::Locked`], which names the first that is another one.
    pub(super) fn agree(&self, others: &Self) -> Result<(), Conflict> {
        for image in &self.united.images {
            let Some(other) = others.united.get(&image.reference) else { continue };
            if other.digest != image.digest && !other.unites(image) && !image.unites(other) {
                let name = others.of.get(&image.reference).cloned().unwrap_or_default();
                return Err(self.conflict(other, &name));
            }
        }
        Ok(())
    }

    fn conflict(&self, image: &Locked, other: &str) -> Conflict {
        let one = self.of.get(&image.reference).cloned().unwrap_or_default();
        Conflict::Locked { image: image.reference.to_string(), one, other: other.to_owned() }
    }

    /// The united lock.
    pub(super) fn lock(&self) -> &Lock {
        &self.united
    }

    /// How many images had a lock.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// Whether two locks say the same of an image: who asks for it does not matter.
fn same(one: &Locked, other: &Locked) -> bool {
    Locked { asked_by: Vec::new(), ..one.clone() } == Locked { asked_by: Vec::new(), ..other.clone() }
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    fn lock(images: &[(&str, &str)]) -> Lock {
        let image = |(name, content): &(&str, &str)| Locked {
            reference: Reference::parse(name).unwrap(),
            digest: sha256(content.as_bytes()),
            media_type: String::new(),
            size: 1,
            platforms: Vec::new(),
            nydus: Vec::new(),
            archive: None,
            asked_by: vec![(*content).to_owned()],
        };
        Lock { platforms: Vec::new(), images: images.iter().map(image).collect() }
    }

    #[test]
    fn locks_unite_and_contradictions_are_named() {
        let mut united = Locks::default();
        united.add("a", lock(&[("nginx", "1"), ("redis", "1")])).unwrap();
        assert_eq!(united.count(), 1);
        united.add("b", lock(&[("app", "1"), ("nginx", "1")])).unwrap();
        let names: Vec<_> =
            united.lock().images.iter().map(|image| image.reference.repository().name()).collect();
        assert_eq!(
            (names.as_slice(), united.count()),
            (&["library/app", "library/nginx", "library/redis"][..], 2)
        );
        for (image, owner) in [("nginx", "a"), ("app", "b")] {
            let error = united.add("c", lock(&[(image, "2")])).unwrap_err();
            let image = format!("docker.io/library/{image}:latest");
            let (one, other) = (owner.to_owned(), "c".to_owned());
            assert_eq!(error, Conflict::Locked { image, one, other });
        }
        let other = Lock { platforms: vec!["linux/amd64".parse().unwrap()], ..Lock::default() };
        assert!(matches!(united.add("d", other), Err(Conflict::Platforms { .. })));
    }

    #[test]
    fn locks_that_are_not_united_may_not_contradict_each_other_either() {
        let (mut one, mut other) = (Locks::default(), Locks::default());
        one.add("a", lock(&[("nginx", "1"), ("redis", "1")])).unwrap();
        other.add("b", lock(&[("nginx", "1"), ("app", "1")])).unwrap();
        one.agree(&other).unwrap();
        other.add("c", lock(&[("redis", "2")])).unwrap();
        let error = one.agree(&other).unwrap_err().to_string();
        assert!(error.contains("a and c") && error.contains("docker.io/library/redis:latest"), "{error}");
    }
}
