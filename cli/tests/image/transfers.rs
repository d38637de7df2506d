//! What commands transfer.

use std::collections::BTreeMap;
use std::fs;

use registry::server::{AccessRecord, ServerConfig, serve};
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, expect};

/// Bytes of blobs that the registry sent, by digest, so far.
fn sent(lab: &Lab) -> BTreeMap<String, u64> {
    let mut sent = BTreeMap::new();
    for line in fs::read_to_string(lab.path("access.log")).unwrap().lines() {
        let record: AccessRecord = serde_json::from_str(line).unwrap();
        if let Some((_, digest)) = record.path.split_once("/blobs/")
            && record.method == "GET"
        {
            *sent.entry(digest.to_owned()).or_default() += record.bytes_sent;
        }
    }
    sent
}

#[test]
fn a_check_transfers_a_remote_image_once() {
    let lab = Lab::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let mut config = ServerConfig::new(lab.path("registry"));
    config.listen.set_port(0);
    config.access_log = Some(lab.path("access.log"));
    let server = runtime.block_on(serve(config, stop.clone())).unwrap();
    for (name, options) in
        [("plain", &[][..]), ("batches", &["--batch-size", "16K"]), ("large", &["--chunk-size", "4M"])]
    {
        // More than is read at once.
        fs::write(lab.path("root/larger"), test_support::text(2, 9_000_000)).unwrap();
        let reference = format!("{}/{name}:v1", server.address());
        let mut convert = lab.image(&["convert", "--fresh", "directory:root", &reference]);
        expect(0, convert.args(options));
        let before = sent(&lab);
        expect(0, &mut lab.image(&["check", &reference]));
        let mut after = sent(&lab);
        after.iter_mut().for_each(|(digest, bytes)| *bytes -= before.get(digest).copied().unwrap_or(0));
        after.retain(|_, bytes| *bytes > 0);
        // The blob and the bootstrap's layer; the config is not needed.
        assert_eq!(after.len(), 2, "{after:?}");
        for (digest, bytes) in after {
            let hex = digest.strip_prefix("sha256:").unwrap();
            let file =
                lab.path(&format!("registry/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
            assert_eq!(bytes, fs::metadata(file).unwrap().len(), "{name}: {digest}");
        }
    }
    stop.cancel();
    runtime.block_on(server.stopped());
}
