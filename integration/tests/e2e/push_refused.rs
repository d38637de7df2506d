//! What a registry refuses fails the build with the reason; what breaks on the way is tried again.

use anyhow::{Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::{demo, process};

use crate::fixture::{Fixture, manifest, nydus_layers, through};

pub(crate) fn by_status(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("refused")?, &[("data", 1 << 20)])?;
    let registry = fixture.registry()?;
    let proxy = FaultProxy::start(registry.address())?;
    for status in [401, 403, 500] {
        // Not the questions before it, whose answers have no room for a reason.
        proxy.set_rules(vec![Rule::always("/v2/refused/", Failure::Status(status)).method("POST")]);
        let name = format!("{}/refused:v{status}", registry.address());
        let output = format!("type=nydus-cluster,name={}", through(&name, proxy.address()));
        let said = process::run_failing(&mut fixture.buildctl()?.build_command(&context, &[&output]))?.stderr;
        ensure!(said.contains(&status.to_string()), "the build does not say {status}:\n{said}");
        ensure!(
            said.contains("refused on purpose"),
            "the build does not give the registry's reason:\n{said}"
        );
        ensure!(manifest(&name).is_err(), "a refused push left an image");
    }
    Ok(())
}

pub(crate) fn cut_is_retried(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("cut")?, &[("data", 8 << 20)])?;
    let registry = fixture.registry()?;
    let proxy = FaultProxy::start(registry.address())?;
    let cut = Rule::always("/blobs/uploads/", Failure::CutUpload(1 << 20)).method("PATCH").once();
    proxy.set_rules(vec![cut]);
    let name = format!("{}/cut:v1", registry.address());
    let output = format!("type=nydus-cluster,name={}", through(&name, proxy.address()));
    fixture.buildctl()?.build(&context, &[&output])?;
    ensure!(proxy.failed_requests() == 1, "no upload was cut");
    for blob in nydus_layers(&manifest(&name)?)?.0 {
        let digest = integration::tree::content_digest(&registry.blob_file(&blob))?;
        ensure!(blob == format!("sha256:{digest}"), "blob {blob} arrived as {digest}");
    }
    Ok(())
}
