//! Many containers of several images outlive restarts of the snapshotter.

use std::env;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;
use integration::tree::content_digest;

use crate::fixture::Fixture;

/// How many, unless `E2E_CONTAINERS` says otherwise.
const CONTAINERS: usize = 10;
const IMAGES: usize = 3;

pub(crate) fn outlive_restarts(fixture: &Fixture) -> Result<()> {
    let count = match env::var("E2E_CONTAINERS") {
        Ok(count) => count.parse().context("E2E_CONTAINERS")?,
        Err(_) => CONTAINERS,
    };
    let files = [("one", 1 << 20), ("two", 1 << 20), ("three", 1 << 20)];
    let mut images = Vec::new();
    for number in 0..IMAGES {
        let dir = fixture.subdir(&format!("many-{number}"))?;
        let context = demo::random_files(fixture.peers(), &dir, &files)?;
        images.push(fixture.build(&context, &format!("many-{number}:v1"))?);
    }
    let mut node = fixture.new_node("many-node", "")?;
    for image in &images {
        node.cri().pull(&image.name)?;
    }
    let pod = node.pod("many")?;
    let mut containers = Vec::new();
    for (number, image) in (0..count).zip(images.iter().cycle()) {
        let spec = ContainerSpec::new(&format!("c{number}"), &image.name, &[]);
        containers.push((node.cri().run_container(&pod, &spec)?, image));
    }
    for (round, (file, _)) in files.iter().enumerate() {
        let server = node.snapshotter()?.server();
        match round {
            0 => {}
            1 => server.stop()?,
            _ => server.kill()?,
        }
        if round > 0 {
            node.restart_snapshotter()?;
        }
        for (container, image) in &containers {
            let sum = node.cri().exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?;
            let (sum, expected) = (sum.success()?, content_digest(&image.context.join(file))?);
            ensure!(sum.starts_with(&expected), "{file} of {}: {sum}, expected {expected}", image.name);
        }
    }
    Ok(())
}
