use super::*;

fn parse(attrs: &[(&str, &str)]) -> Result<Attrs, AttrError> {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Attrs::parse(&attrs, &Options::default())
}

#[test]
fn a_name_is_pushed_to_by_default_with_oci_media_types() {
    let attrs = parse(&[("name", "127.0.0.1:5000/demo:v1")]).unwrap();
    assert!(attrs.push && attrs.oci_media_types && !attrs.insecure);
    assert_eq!(attrs.title(), "127.0.0.1:5000/demo:v1");
}

#[test]
fn images_are_found_where_the_image_is_pushed_to() {
    for (value, images) in [("none", Images::None), ("ref", Images::Ref), ("embed", Images::Embed)] {
        assert_eq!(parse(&[("name", "h:1/demo"), ("images", value)]).unwrap().images, images);
    }
    assert_eq!(parse(&[("name", "h:1/demo")]).unwrap().images, Images::None);
    let error = parse(&[("name", "h:1/demo"), ("images", "all")]).unwrap_err().to_string();
    assert!(error.contains("none, ref or embed"), "{error}");
    let unpushed = [("push", "false"), ("images", "ref")];
    assert_eq!(parse(&unpushed).unwrap_err(), AttrError::ImagesWithoutPush);
    let by_digest = [("name", "h:1/demo"), ("push-by-digest", "true"), ("images", "embed")];
    assert_eq!(parse(&by_digest).unwrap_err(), AttrError::ImagesByDigest);
}

#[test]
fn an_unknown_key_is_named_together_with_all_known_ones() {
    let error = parse(&[("name", "h:1/demo"), ("compresion", "zstd")]).unwrap_err().to_string();
    for word in known_keys().chain(["\"compresion\"", "annotation", "chunk-size"]) {
        assert!(error.contains(word), "{word} in {error}");
    }
}

#[test]
fn the_plain_image_beside_is_the_build_s_own_or_the_one_of_the_name() {
    let beside = |attrs: &[(&str, &str)]| parse(attrs).map(|attrs| attrs.beside);
    let name = ("name", "h:1/demo");
    assert_eq!(beside(&[name]), Ok(Beside::Nothing));
    assert_eq!(beside(&[name, ("merge-manifest", "true")]), Ok(Beside::Named));
    assert_eq!(beside(&[name, ("merge-manifest", "false")]), Ok(Beside::Nothing));
    assert_eq!(beside(&[name, ("also-oci", "true")]), Ok(Beside::Own));
    assert_eq!(beside(&[name, ("also-oci", "true"), ("merge-manifest", "true")]), Ok(Beside::Own));
    for more in [("push", "false"), ("push-by-digest", "true")] {
        assert_eq!(beside(&[name, ("merge-manifest", "true"), more]), Err(AttrError::Merge));
        assert_eq!(beside(&[name, ("also-oci", "true"), more]), Ok(Beside::Own));
    }
    let docker = ("oci-mediatypes", "false");
    assert_eq!(beside(&[name, ("merge-manifest", "true"), docker]), Err(AttrError::Merge));
    assert_eq!(beside(&[name, ("also-oci", "true"), docker]), Err(AttrError::AlsoOci));
}

#[test]
fn annotations_and_source_date_are_left_to_buildkit() {
    let attrs = parse(&[("name", "h:1/demo"), ("annotation.a", "b"), ("source-date-epoch", "0")]).unwrap();
    assert_eq!(attrs.passed.len(), 2);
}

#[test]
fn what_only_begins_like_an_annotation_is_no_key() {
    for key in ["annotation.a", "annotation-index.a", "annotation[linux/amd64].a", "annotation-manifest[x].a"]
    {
        assert!(parse(&[("name", "h:1/demo"), (key, "b")]).is_ok(), "{key}");
    }
    for key in
        ["annotation", "annotationfoo", "annotation.", "annotation-x.a", "annotation[x.a", "annotations.a"]
    {
        assert!(
            matches!(parse(&[("name", "h:1/demo"), (key, "b")]), Err(AttrError::UnknownKey { .. })),
            "{key}"
        );
    }
}

#[test]
fn a_push_by_digest_has_no_tag_and_reports_the_digest() {
    let tagged = [("name", "h:1/demo:v1"), ("push-by-digest", "true")];
    assert!(matches!(parse(&tagged), Err(AttrError::TagByDigest { .. })));
    let attrs = parse(&[("name", "h:1/demo"), ("push-by-digest", "true")]).unwrap();
    let digest = registry::digest::sha256(b"");
    assert_eq!(attrs.names_of(&digest), [format!("h:1/demo@{digest}")]);
    let attrs = parse(&[("name", "h:1/demo:v1"), ("name-canonical", "true")]).unwrap();
    assert_eq!(attrs.names_of(&digest), ["h:1/demo:v1".to_owned(), format!("h:1/demo@{digest}")]);
}

#[test]
fn attestations_call_the_image_by_package_urls() {
    let attrs = parse(&[("name", "h:1/team/demo:v1")]).unwrap();
    let platform = serde_json::json!({"os": "linux", "architecture": "arm", "variant": "v7"});
    assert_eq!(
        attrs.package_urls(Some(&platform)),
        ["pkg:docker/h:1/team/demo@v1?platform=linux%2Farm%2Fv7"]
    );
    assert_eq!(parse(&[("name", "busybox")]).unwrap().package_urls(None), ["pkg:docker/busybox@latest"]);
}

#[test]
fn a_push_needs_a_name_and_a_name_needs_no_digest() {
    assert_eq!(parse(&[]).unwrap_err(), AttrError::NoName);
    assert!(parse(&[("push", "false")]).is_ok());
    let digest = format!("h:1/demo@sha256:{}", "a".repeat(64));
    assert!(matches!(parse(&[("name", &digest)]), Err(AttrError::NameWithDigest { .. })));
}

fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn an_image_for_the_client_s_disk_is_an_oci_output_with_a_key() {
    let ours = |kind, pairs: &[(&str, &str)]| is_ours(kind, &attrs(pairs));
    assert_eq!(ours("oci", &[("nydus-cluster", "true")]), Ok(true));
    assert_eq!(ours("oci", &[("nydus-cluster", "false")]), Ok(false));
    assert_eq!((ours("oci", &[]), ours("nydus-cluster", &[])), (Ok(false), Ok(true)));
    assert!(matches!(ours("docker", &[("nydus-cluster", "true")]), Err(AttrError::NotOfType { .. })));

    let of = |pairs: &[(&str, &str)]| Attrs::of("oci", &attrs(pairs), &Options::default());
    let archive = of(&[("nydus-cluster", "true"), ("name", "demo:v1,demo:v2")]).unwrap();
    assert_eq!((archive.receiver, archive.push, archive.names.len()), (Receiver::ClientArchive, false, 2));
    let store = of(&[("nydus-cluster", "true"), ("tar", "false")]).unwrap();
    assert_eq!(store.receiver, Receiver::ClientStore);
    assert_eq!(
        of(&[("nydus-cluster", "true"), ("push", "true")]).unwrap_err(),
        AttrError::Push { key: "push" }
    );
    let error = parse(&[("name", "h:1/demo"), ("dest", "image.tar")]).unwrap_err().to_string();
    assert!(error.contains("write type=oci,nydus-cluster=true,dest=FILE"), "{error}");
}

#[test]
fn names_are_in_as_many_repositories_as_are_wanted_where_nothing_needs_one() {
    let names = ("name", "h:1/demo:a,h:2/demo:a,h:1/demo:b");
    let attrs = parse(&[names, ("name-canonical", "true")]).unwrap();
    let by_repository: Vec<_> = attrs
        .by_repository()
        .into_iter()
        .map(|(repository, names)| (repository.to_string(), names.len()))
        .collect();
    assert_eq!(by_repository, [("h:1/demo".to_owned(), 2), ("h:2/demo".to_owned(), 1)]);
    let digest = registry::digest::sha256(b"");
    let reported = attrs.names_of(&digest);
    let expected = ["h:1/demo:a", "h:1/demo:b", "h:2/demo:a"].map(str::to_owned);
    assert_eq!(reported[..3], expected);
    assert_eq!(reported[3..], ["h:1/demo", "h:2/demo"].map(|repository| format!("{repository}@{digest}")));
    for needs_one in [("merge-manifest", "true"), ("images", "ref"), ("images", "embed")] {
        let error = parse(&[names, needs_one]).unwrap_err();
        assert!(matches!(error, AttrError::Repositories { .. }), "{error}");
    }
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (key, value) in [
        ("push", "yes"),
        ("oci-mediatypes", "2"),
        ("layer-compression", "lz4"),
        ("compressor", "gzip"),
        ("chunk-size", "5K"),
    ] {
        let error = parse(&[("name", "h:1/demo"), (key, value)]).unwrap_err().to_string();
        let expected = format!("type=nydus-cluster: {key}={value:?}: expected ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let both = [("name", "h:1/demo"), ("compression-level", "3"), ("compressor", "lz4")];
    let error = parse(&both).unwrap_err().to_string();
    assert!(error.contains("compression-level=3") && error.contains("compressor=lz4"), "{error}");
}

#[test]
fn what_keys_do_not_choose_is_as_configured() {
    let defaults = Options { chunk_size: 1 << 16, inline_chunk_info: true, ..Options::default() };
    let keys = [("name", "h:1/demo"), ("inline-chunk-info", "false")];
    let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let options = Attrs::parse(&BTreeMap::from(keys), &defaults).unwrap().options;
    assert_eq!(options, Options { chunk_size: 1 << 16, ..Options::default() });
}
