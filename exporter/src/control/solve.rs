//! Solve: our outputs become OCI outputs for buildkitd, and the response waits until the images are pushed.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use image::options::Options;

use super::Rpc;
use super::message::{self, Export, SolveRequest};
use super::report::{report, reported};
use crate::build::kept::KeptBlobs;
use crate::build::keys::{AttrError, Attrs, Beside, EXPORTER_TYPE, LayerCompression, Receiver, is_ours};
use crate::build::target::Target;
use crate::build::{Build, Output, Preparation, Registered, Way};
use crate::client::disk::{ClientArchive, ClientStore};
use crate::client::{ContextFiles, SessionKeyring};
use crate::exporter::Exporter;
use crate::follow::convert_ahead;
use crate::grpc::frame::MessageReader;
use crate::grpc::wire::WireError;
use crate::grpc::{Code, Status};
use crate::http2::forward::until_reset;
use crate::http2::respond;
use crate::http2::unary::{Answer, Failed, call, deliver};
use crate::intake::Intake;
use crate::metrics::Outcome;
use crate::session::{self, SessionClient, open_own};
use image::destination::StoreError;
use image::progress::Progress;
use registry::reference::Repository;

/// The largest Solve request taken: four times what buildkitd takes.
const REQUEST_LIMIT_BYTES: usize = 64 << 20;

/// The most outputs of ours in one build. They come as tar streams side by side, and those that wait for a conversion to
/// begin hold a stream window each: with eight they would fill the connection's, and nothing would move any more.
const OUTPUTS_LIMIT: usize = 4;

/// BuildKit's key for the form of layers.
const COMPRESSION: &str = "compression";
/// BuildKit's key for whether layers that have another form already are to have that one, too.
const FORCE_COMPRESSION: &str = "force-compression";

/// A request with outputs of ours, ready for buildkitd.
struct Plan {
    request: SolveRequest,
    outputs: Vec<(usize, Attrs, Way)>,
    message: Vec<u8>,
}

/// Handles one Solve.
pub(crate) async fn handle(mut rpc: Rpc<'_>) {
    let (parts, body) = rpc.request.into_parts();
    let read = MessageReader::new(body, REQUEST_LIMIT_BYTES).message().await;
    let prepared = read.and_then(|message| {
        let message =
            message.ok_or_else(|| Status::new(Code::Internal, "Solve: expected a request message"))?;
        let plan = plan(&message, rpc.exporter.defaults())?;
        Ok((message, plan))
    });
    let (message, plan) = match prepared {
        Ok(prepared) => prepared,
        Err(status) => return respond::refuse(&mut rpc.downstream, &status),
    };
    let Some(plan) = plan else {
        let ended = call(parts, &message, rpc.upstream, rpc.peer, &mut rpc.downstream).await;
        return deliver(&mut rpc.downstream, ended).await;
    };
    let begun = begin(rpc.exporter, plan, rpc.upstream.clone(), rpc.peer);
    let ended = match until_reset(&mut rpc.downstream, begun).await {
        Ok(Ok((registered, message))) => {
            let build = &registered.build;
            let _counted = rpc.exporter.metrics.build();
            tracing::info!(build = build.reference, outputs = build.outputs.len(), "export begins");
            let ended = call(parts, &message, rpc.upstream, rpc.peer, &mut rpc.downstream).await;
            let ended = finish(build, ended, &mut rpc.downstream).await;
            record(rpc.exporter, build, &ended);
            // Status may end now; the response follows at once.
            drop(registered);
            ended
        }
        Ok(Err(status)) => Err(Failed::Ours(status)),
        Err(error) => Err(Failed::Cancelled(error.reason())),
    };
    deliver(&mut rpc.downstream, ended).await;
}

/// What a request needs; `None` if no output is ours.
fn plan(message: &[u8], defaults: &Options) -> Result<Option<Plan>, Status> {
    let request = SolveRequest::parse(message).map_err(malformed)?;
    let invalid = |error: AttrError| Status::new(Code::InvalidArgument, error.to_string());
    let ours = request.exports.iter().map(|export| is_ours(&export.kind, &export.attrs));
    let ours = ours.collect::<Result<Vec<bool>, _>>().map_err(invalid)?;
    let count = ours.iter().filter(|ours| **ours).count();
    if count == 0 {
        return Ok(None);
    }
    if count > OUTPUTS_LIMIT {
        let message = format!(
            "{count} outputs type={EXPORTER_TYPE} in one build: expected at most {OUTPUTS_LIMIT}; write one more build for the others"
        );
        return Err(Status::new(Code::InvalidArgument, message));
    }
    // All exports to the session's content store share one name there: only one may use it.
    let (own, others): (Vec<_>, Vec<_>) =
        request.exports.iter().enumerate().partition(|(index, _)| ours[*index]);
    let others: Vec<&Export> = others.into_iter().map(|(_, export)| export).collect();
    let store_taken = others.iter().any(|export| export.is_store());
    let way = if count > 1 || store_taken { Way::Tar } else { Way::Store };
    let mut outputs = Vec::new();
    for (index, export) in own {
        let attrs = Attrs::of(&export.kind, &export.attrs, defaults).map_err(invalid)?;
        outputs.push((index, attrs, way));
    }
    // A layer keeps the form in which it is handed over first, to whichever output: plain images need a compressed one.
    let unless_said = match outputs.iter().any(|(_, attrs, _)| attrs.beside == Beside::Own) {
        true => LayerCompression::Zstd,
        false => LayerCompression::Uncompressed,
    };
    let oci = |attrs| oci_export(attrs, way, &others, &request.caches, unless_said);
    let replacements = outputs.iter().map(|(index, attrs, _)| (*index, oci(attrs))).collect();
    let message = message::replace_exports(message, &replacements).map_err(malformed)?;
    Ok(Some(Plan { request, outputs, message }))
}

/// Whether the layers of an output or a cache export are tar archives, compressed or not: BuildKit knows others, such as `nydus`.
fn is_tar_form(export: &Export) -> bool {
    let compression = export.attrs.get(COMPRESSION).map(String::as_str);
    compression.is_none_or(|form| matches!(form, "uncompressed" | "gzip" | "estargz" | "zstd"))
}

/// What buildkitd is to make instead of an output of ours.
fn oci_export(
    attrs: &Attrs,
    way: Way,
    others: &[&Export],
    caches: &[Export],
    unless_said: LayerCompression,
) -> Export {
    let mut oci = attrs.passed.clone();
    oci.insert("tar".to_owned(), (way == Way::Tar).to_string());
    oci.insert("oci-mediatypes".to_owned(), "true".to_owned());
    if attrs.receiver == Receiver::Registry {
        // As BuildKit's image exporter does: buildx asks by default for attestations that only images are to have.
        oci.entry("attestation-inline".to_owned()).or_insert_with(|| "true".to_owned());
    }
    let images = others.iter().copied().filter(|export| export.is_image());
    // Inline caches have no layers of their own.
    let caches = caches.iter().filter(|cache| cache.kind != "inline");
    let beside: Vec<&Export> = images.chain(caches).collect();
    let own = |chosen: Option<LayerCompression>| chosen.unwrap_or(unless_said).as_str().to_owned();
    match (attrs.layer_compression, beside.first()) {
        // The form that a layer gets first is the one that all are given, unless they insist on theirs.
        (chosen, _) if !beside.iter().all(|other| is_tar_form(other)) => {
            oci.insert(COMPRESSION.to_owned(), own(chosen));
            oci.insert(FORCE_COMPRESSION.to_owned(), true.to_string());
        }
        // Layers as an image output or a cache export wants them anyway: a second form would cost time and space.
        (None, Some(other)) => {
            for key in [COMPRESSION, "compression-level", FORCE_COMPRESSION] {
                if let Some(value) = other.attrs.get(key) {
                    oci.insert(key.to_owned(), value.clone());
                }
            }
        }
        (chosen, _) => {
            oci.insert(COMPRESSION.to_owned(), own(chosen));
        }
    }
    Export { kind: "oci".to_owned(), attrs: oci }
}

/// Makes the plan's build known, so that what buildkitd sends for it is taken, in a session of the build's own. Returns the
/// request for buildkitd as well.
async fn begin<'a>(
    exporter: &'a Exporter,
    plan: Plan,
    upstream: SendRequest<Bytes>,
    peer: &str,
) -> Result<(Registered<'a>, Vec<u8>), Status> {
    let client = exporter.sessions.client(&plan.request.session).await?;
    let session = session::id_for(&plan.request.session, &plan.request.reference);
    let message = message::set_session(&plan.message, &session).map_err(malformed)?;
    let progress = Progress::new();
    let mut outputs = Vec::with_capacity(plan.outputs.len());
    for (index, attrs, way) in plan.outputs {
        let (target, copies) = targets(exporter, &attrs, index, &client, &session).await?;
        let keyring = Arc::new(SessionKeyring::new(client.streams.clone()));
        let preparation = Preparation {
            converter: exporter.converter.clone().showing(Arc::clone(&progress), index),
            threads: exporter.threads(),
            scratch_space: Arc::clone(&exporter.scratch_space),
            document_space: Arc::clone(&exporter.document_space),
            change_room: Arc::clone(&exporter.change_room),
            together_space: Arc::clone(&exporter.together_space),
            layer_space: Arc::clone(&exporter.layer_space),
            name_turns: Arc::clone(&exporter.name_turns),
            client: exporter.client.with_keyring(keyring, exporter.own_credentials()),
            files: Some(ContextFiles::new(client.streams.clone())),
        };
        let cluster = exporter.cluster().clone();
        let output = Output::new(index, way, attrs, target, preparation, cluster, Arc::clone(&progress));
        let output = output.of_build(&plan.request.reference).copied_to(copies);
        let output = output.leaving_with(KeptBlobs::new(upstream.clone()));
        outputs.push(Arc::new(if exporter.reuses() { output.reusing() } else { output }));
    }
    let reported = reported(&plan.request.exports, &outputs);
    let build = Build::new(plan.request.reference, session, reported, outputs, progress);
    let registered = exporter.builds.register(build);
    let registered = registered.map_err(|error| Status::new(Code::FailedPrecondition, error.to_string()))?;
    let build = Arc::clone(&registered.build);
    let local = exporter.content_store();
    let intake = Intake { build: Arc::clone(&build), local: local.clone() };
    open_own(Arc::new(intake), client, upstream, peer).await?;
    if let Some(local) = local.filter(|_| build.store_output().is_some()) {
        tokio::spawn(convert_ahead(local, build, Arc::clone(&exporter.builds)));
    }
    Ok((registered, message))
}

/// Where output `index` of the build with this session goes, and where it is copied to from there.
async fn targets(
    exporter: &Exporter,
    attrs: &Attrs,
    index: usize,
    client: &SessionClient,
    session: &str,
) -> Result<(Target, Vec<Target>), Status> {
    let streams = client.streams.clone();
    let only = |destination| (Target::ready(destination), Vec::new());
    Ok(match attrs.receiver {
        Receiver::Registry => {
            let (own, patience) = (exporter.own_credentials(), exporter.answer_patience());
            let target = |repository: Option<&Repository>| {
                let keyring = Arc::new(SessionKeyring::new(streams.clone()));
                Target::new(attrs, repository, &exporter.client, keyring, own, patience)
            };
            let mut repositories = attrs.by_repository().into_iter().map(|(repository, _)| repository);
            let first = target(repositories.next());
            (first, repositories.filter(|_| attrs.push).map(|other| target(Some(other))).collect())
        }
        Receiver::ClientArchive => {
            let (annotations, space) = (attrs.root_annotations(), &exporter.archive_space);
            let archive = ClientArchive::new(streams, index, annotations, space).await;
            only(Arc::new(archive.map_err(unusable)?))
        }
        Receiver::ClientStore => only(Arc::new(ClientStore::new(streams, session))),
    })
}

fn unusable(error: StoreError) -> Status {
    Status::new(Code::FailedPrecondition, error.to_string())
}

fn malformed(error: WireError) -> Status {
    Status::new(Code::InvalidArgument, format!("Solve request: {error}"))
}

/// Our part after buildkitd's: names for what was pushed, and the digest into the response.
async fn finish(
    build: &Build,
    ended: Result<Answer, Failed>,
    downstream: &mut SendResponse<Bytes>,
) -> Result<Answer, Failed> {
    let mut answer = match ended {
        Ok(answer) if answer.is_ok() => answer,
        Ok(_) if let Some(reason) = build.failure() => return Err(fail(build, reason)),
        ended => return ended,
    };
    let response = answer.message.take().unwrap_or_default();
    let published = async {
        let mut images = Vec::new();
        for output in &build.outputs {
            images.push(output.publish().await.map_err(|error| error.to_string())?);
        }
        Ok::<_, String>(images)
    };
    let images = match until_reset(downstream, published).await {
        Ok(Ok(images)) => images,
        Ok(Err(reason)) => return Err(fail(build, reason)),
        Err(error) => return Err(Failed::Cancelled(error.reason())),
    };
    answer.message = Some(report(build, &images, response)?);
    Ok(answer)
}

/// Counts a build that has ended, and says in a line of the log what became of it.
fn record(exporter: &Exporter, build: &Build, ended: &Result<Answer, Failed>) {
    let outcome = match ended {
        Ok(answer) if answer.is_ok() => Outcome::Done,
        Ok(_) | Err(Failed::Ours(_) | Failed::Reset(_)) => Outcome::Failed,
        Err(Failed::Cancelled(_)) => Outcome::Cancelled,
    };
    let (seconds, tally) = (build.started.elapsed().as_secs_f64(), build.tally());
    exporter.metrics.ended(outcome, seconds, tally);
    let images: Vec<String> = build.outputs.iter().map(|output| output.title()).collect();
    tracing::info!(
        build = build.reference,
        image = images.join(","),
        layers = tally.layers,
        converted = tally.converted,
        bytes = tally.bytes,
        seconds = (seconds * 1000.0).round() / 1000.0,
        outcome = outcome.as_str(),
        "build ended"
    );
}

fn fail(build: &Build, reason: String) -> Failed {
    tracing::warn!(build = build.reference, error = reason, "export failed");
    Failed::Ours(Status::new(Code::Unknown, reason))
}
