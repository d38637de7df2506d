//! Builds on a buildkitd that no other test uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use integration::demo;
use integration::servers::{Buildctl, Buildkitd, Exporter, ExporterOptions};

use crate::fixture::Fixture;

/// A buildkitd whose cache and content store nobody else fills, and where exporters in front of it have their directories.
pub(crate) struct BuildLab<'a> {
    fixture: &'a Fixture,
    pub(crate) buildkitd: Buildkitd,
    pub(crate) dir: PathBuf,
}

impl<'a> BuildLab<'a> {
    pub(crate) fn new(fixture: &'a Fixture, name: &str) -> Result<Self> {
        let dir = fixture.subdir(name)?;
        let buildkitd = Buildkitd::start(fixture.peers(), &dir.join("b"))?;
        Ok(Self { fixture, buildkitd, dir })
    }

    /// An exporter with the directory `name`.
    pub(crate) fn exporter(&self, name: &str, options: &ExporterOptions) -> Result<Exporter> {
        Exporter::start_with(&self.dir.join(name), &self.buildkitd.address(), options)
    }

    /// An exporter with the directory `name` that may read buildkitd's content store.
    pub(crate) fn exporter_on_store(&self, name: &str) -> Result<Exporter> {
        let content_store = Some(self.buildkitd.content_store().to_owned());
        self.exporter(name, &ExporterOptions { content_store, ..ExporterOptions::default() })
    }

    /// The name of an image in the registry that all tests share.
    pub(crate) fn name(&self, repository: &str) -> Result<String> {
        Ok(format!("{}/{repository}:v1", self.fixture.registry()?.address()))
    }

    pub(crate) fn buildctl(&self, exporter: &Exporter) -> Result<Buildctl> {
        Buildctl::new(self.fixture.peers(), exporter.address())
    }

    /// A build of `context` as the nydus image `name`.
    pub(crate) fn build(&self, exporter: &Exporter, context: &Path, name: &str) -> Result<()> {
        self.buildctl(exporter)?.build(context, &[&output(name)])?;
        Ok(())
    }

    /// A context whose image has a base from a registry, whose layer is compressed; busybox; and a layer for each of `files`.
    pub(crate) fn context(&self, name: &str, files: &[(&str, u64)]) -> Result<PathBuf> {
        let context = demo::random_files(self.fixture.peers(), &self.dir.join(name), files)?;
        let path = context.join("Dockerfile");
        let text = fs::read_to_string(&path)?;
        fs::write(&path, text.replace("FROM scratch", &format!("FROM {}", self.fixture.pause()?)))?;
        Ok(context)
    }
}

/// `--output` for the nydus image `name`.
pub(crate) fn output(name: &str) -> String {
    format!("type=nydus-cluster,name={name}")
}
