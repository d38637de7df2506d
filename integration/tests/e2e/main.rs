//! End-to-end tests with the real buildkitd, containerd, runc, kernel and registries: one file a promise.
//!
//! Servers are started when the first test needs them, shared, and stopped after the last. Where something is
//! missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

mod alerts;
mod beside_plain;
mod build_cancelled;
mod build_lab;
mod buildkit_absent;
mod cache_room;
mod certs_dir;
mod cluster_build;
mod cluster_nydus;
mod cluster_platforms;
mod cluster_save;
mod content_store;
mod convert;
mod corrupt_chunk;
mod credentials;
mod critest;
mod ctr;
mod dead_registry;
mod embed_at_once;
mod expired_token;
mod fixture;
mod https;
mod id_mapped;
mod image_commands;
mod image_diff;
mod image_formats;
mod image_interrupted;
mod image_merge;
mod image_sets;
mod image_source;
mod keys;
mod kills;
mod layer_cache;
mod lazy_run;
mod many_containers;
mod names;
mod node_commands;
mod parallel_unpack;
mod plain_images;
mod pull_secrets;
mod push_refused;
mod read_only_root;
mod registry_conformance;
mod remove_image;
mod restart;
mod same_tree;
mod session_services;
mod shared_layers;
mod snapshots_suite;
mod spool;
mod stalled_registry;
mod tenants;
mod unmounted;
mod upstream;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use integration::peers::ContainerdVersion;
use integration::suite::trial;
use libtest_mimic::{Arguments, Trial};

use fixture::Fixture;

type Test = fn(&Fixture) -> Result<()>;

/// All tests, in the order in which they share most.
const TESTS: &[(&str, Test)] = &[
    ("buildkit_absent::a_build_says_that_buildkitd_cannot_be_reached", buildkit_absent::says_so),
    ("same_tree::a_container_sees_the_tree_that_buildkit_exports", same_tree::in_a_container),
    ("same_tree::special_files_survive", same_tree::special_files),
    ("upstream::nydusd_serves_the_same_tree", upstream::nydusd_tree),
    ("upstream::nydus_image_check_accepts_the_bootstrap", upstream::image_check),
    ("upstream::the_kernel_mounts_the_bootstrap_and_fsck_finds_nothing", upstream::kernel_and_fsck),
    ("upstream::its_node_runs_our_images_in_each_of_its_modes", upstream::node),
    ("image_commands::inspect_shows_what_an_image_is_made_of", image_commands::inspect),
    ("image_commands::check_tells_sound_damaged_and_absent_images_apart", image_commands::check),
    ("image_commands::unpack_gives_the_tree_back", image_commands::unpack),
    ("image_commands::mount_serves_the_tree_until_interrupted", image_commands::mount),
    ("image_interrupted::an_interrupted_unpack_leaves_nothing", image_interrupted::unpack),
    ("image_interrupted::a_check_without_an_answer_finds_nothing", image_interrupted::check),
    ("image_diff::a_node_fetches_what_diff_says", image_diff::fetched),
    ("image_merge::merging_upstreams_layers_gives_upstreams_tree", image_merge::as_upstream),
    ("image_merge::what_cannot_be_merged_is_said", image_merge::limits),
    ("image_formats::both_versions_of_upstreams_are_read", image_formats::both_versions),
    ("image_formats::encrypted_images_are_refused_by_name", image_formats::encrypted),
    ("image_source::an_image_is_what_it_was_made_from", image_source::plain_image),
    ("image_source::every_difference_is_named", image_source::differences),
    ("cluster_build::a_build_locks_what_it_asks_for", cluster_build::locked),
    ("cluster_build::a_build_obeys_the_lock_that_it_has", cluster_build::obeyed),
    ("cluster_build::an_image_in_an_archive_is_embedded", cluster_build::archived),
    (
        "cluster_platforms::archives_of_their_own_become_one_image_for_all_nodes",
        cluster_platforms::archives_of_their_own,
    ),
    ("cluster_build::an_image_is_described_in_the_words_of_both_systems", cluster_build::described),
    ("embed_at_once::builds_at_once_embed_in_one_repository", embed_at_once::one_repository),
    ("cluster_build::embedded_images_use_what_the_root_file_system_has", cluster_build::shared),
    ("convert::every_source_gives_the_same_image", convert::sources),
    ("convert::every_destination_takes_the_image", convert::destinations),
    ("convert::all_platforms_of_an_index_are_converted_or_those_chosen", convert::platforms),
    ("convert::options_shape_the_image", convert::options),
    ("convert::inlined_chunk_information_saves_a_node_its_requests", convert::inline_chunk_info),
    ("convert::a_chunk_dictionary_is_shared", convert::dictionary),
    ("convert::an_interrupted_conversion_leaves_nothing", convert::interrupted),
    ("convert::what_cannot_be_converted_is_named_and_leaves_nothing", convert::refused),
    ("cluster_save::images_as_rafs_are_what_they_were", cluster_save::as_rafs),
    (
        "cluster_nydus::an_image_that_is_nothing_else_runs_lazily_without_its_registry",
        cluster_nydus::runs_lazily,
    ),
    ("image_sets::run_as_rafs_under_their_own_names", image_sets::run_lazily),
    ("image_sets::are_outlived_by_what_was_pulled", image_sets::outlive),
    ("image_sets::may_be_several_on_one_base", image_sets::two_of_them),
    ("image_sets::changes_of_a_container_are_taken_if_that_is_wanted", image_sets::changes_are_taken),
    ("beside_plain::a_plain_client_runs_the_plain_image", beside_plain::plain_client),
    ("beside_plain::our_snapshotter_runs_the_nydus_image_if_told_to", beside_plain::lazily),
    ("beside_plain::an_index_of_a_build_runs_with_and_without_us", beside_plain::of_builds),
    (
        "beside_plain::upstreams_snapshotter_runs_the_nydus_image_if_told_to",
        beside_plain::upstream_snapshotter,
    ),
    ("lazy_run::a_pull_reads_no_byte_of_a_blob_and_a_start_reads_little", lazy_run::byte_counts),
    ("lazy_run::many_readers_of_a_chunk_cause_one_fetch", lazy_run::one_fetch),
    ("node_commands::a_complete_image_needs_no_registry_and_was_traced", node_commands::complete_and_traced),
    ("alerts::of_the_documents_ask_for_what_a_node_exports", alerts::ask_for_what_is_exported),
    ("plain_images::a_plain_image_runs_with_our_snapshotter", plain_images::runs),
    ("plain_images::other_builds_pass_through_the_exporter", plain_images::passes_through),
    ("plain_images::both_registries_take_the_image", plain_images::both_registries),
    ("session_services::secrets_agents_and_caches_pass_through_the_exporter", session_services::pass_through),
    ("read_only_root::is_read_and_not_written", read_only_root::is_read_and_not_written),
    ("snapshots_suite::containerds_own_suite_passes", snapshots_suite::passes),
    ("critest::image_and_container_suites_pass", critest::passes),
    ("names::all_names_of_an_image_are_read_from", names::all_are_read_from),
    ("certs_dir::mirrors_of_containerd_are_read_from", certs_dir::mirrors_are_read_from),
    ("certs_dir::changes_are_noticed_while_an_image_is_mounted", certs_dir::changes_are_noticed),
    ("https::a_registry_of_the_operators_own_authority_is_read_from", https::is_read_from),
    ("pull_secrets::of_the_pods_on_the_node_are_used_and_renewed", pull_secrets::of_the_pod),
    ("credentials::a_pull_is_refused_without_credentials_of_the_node", credentials::of_the_node),
    ("credentials::a_pull_is_refused_with_what_the_registry_says_of_a_blob", credentials::by_status),
    ("tenants::read_what_their_own_repositories_give", tenants::read_what_their_own_repositories_give),
    ("unmounted::an_image_that_somebody_unmounted_is_mounted_again", unmounted::is_mounted_again),
    ("restart::a_container_outlives_the_snapshotter", restart::snapshotter_restarts),
    ("restart::a_container_reads_on_over_kills_of_the_daemon", restart::daemon_is_killed),
    ("restart::a_container_reads_on_while_another_program_takes_over", restart::daemon_is_upgraded),
    ("kills::under_load_show_no_error_and_no_wrong_byte", kills::under_load),
    ("remove_image::unmounts_and_frees_the_cache", remove_image::frees),
    ("corrupt_chunk::gives_an_error_on_that_file_alone", corrupt_chunk::one_file),
    ("dead_registry::a_read_fails_within_the_deadline", dead_registry::fails_in_time),
    ("dead_registry::what_fails_is_named_in_the_log", dead_registry::is_named_in_the_log),
    ("expired_token::is_renewed_while_a_container_runs", expired_token::is_renewed),
    ("expired_token::is_never_noticed_by_containers_that_read", expired_token::is_never_noticed),
    ("cache_room::within_a_quota_what_runs_is_kept_and_what_ended_gives_way", cache_room::quota),
    ("cache_room::on_a_full_disk_containers_start_and_read_on", cache_room::full_disk),
    ("shared_layers::a_new_version_leaves_the_old_one_alone", shared_layers::rolled_out),
    ("shared_layers::an_image_comes_back_whose_layers_another_uses", shared_layers::pulled_again),
    ("shared_layers::nothing_stays_cached_of_images_that_are_gone", shared_layers::freed),
    ("many_containers::outlive_restarts_of_the_snapshotter", many_containers::outlive_restarts),
    ("build_cancelled::an_interrupted_build_ends_and_pushes_nothing", build_cancelled::ends),
    ("build_cancelled::a_build_ends_at_once_in_every_phase_of_its_push", build_cancelled::in_every_phase),
    ("content_store::layers_are_converted_while_buildkitd_makes_them", content_store::ahead),
    (
        "content_store::an_exporter_killed_in_the_middle_of_a_push_leaves_what_the_next_one_can_use",
        content_store::killed,
    ),
    ("content_store::builds_side_by_side_keep_their_layers_apart", content_store::side_by_side),
    ("content_store::a_layer_of_another_build_is_not_stored", content_store::of_another_build),
    ("content_store::several_outputs_of_a_build_come_over_the_session", content_store::several_outputs),
    ("content_store::the_plain_image_comes_from_there_too", content_store::also_oci),
    ("content_store::a_wrong_content_store_costs_nothing_but_time", content_store::wrong),
    ("content_store::an_interrupted_build_ends_and_the_next_succeeds", content_store::interrupted),
    ("layer_cache::a_restarted_exporter_pushes_nothing_but_manifests", layer_cache::restarted),
    ("layer_cache::blobs_are_mounted_or_copied_from_where_they_are_or_made_again", layer_cache::elsewhere),
    ("layer_cache::builds_side_by_side_convert_shared_layers_once", layer_cache::side_by_side),
    ("layer_cache::an_exporter_killed_while_it_pushes_leaves_nothing_wrong", layer_cache::killed),
    ("spool::what_a_killed_exporter_left_is_removed_and_what_others_have_stays", spool::killed),
    ("layer_cache::a_new_machine_finds_layers_at_the_name", layer_cache::announced),
    ("layer_cache::a_new_machine_finds_a_flattened_image_at_the_name", layer_cache::announced_flattened),
    ("layer_cache::a_full_disk_costs_nothing_but_time", layer_cache::full_disk),
    ("keys::about_the_image_shape_it", keys::shape),
    ("keys::that_mean_nothing_are_refused_by_name", keys::refused),
    ("keys::a_chunk_dictionary_is_referred_to", keys::chunk_dict),
    ("keys::a_flattened_image_holds_what_is_seen", keys::flatten),
    ("keys::a_list_in_the_build_context_is_prefetched", keys::prefetch_list),
    ("keys::of_time_and_annotations_give_one_digest_twice", keys::reproducible),
    ("keys::large_attestations_are_kept_for_all_platforms", keys::large_attestations),
    ("push_refused::the_reason_fails_the_build", push_refused::by_status),
    ("stalled_registry::another_build_goes_on_while_a_registry_stands_still", stalled_registry::others_go_on),
    ("stalled_registry::all_of_buildkitds_slots_are_free_again_at_the_deadline", stalled_registry::all_slots),
    ("registry_conformance::the_specifications_own_suite_passes", registry_conformance::passes),
    ("push_refused::a_connection_cut_within_a_blob_is_retried", push_refused::cut_is_retried),
];

/// What is there from containerd 2 on.
const TESTS_ON_2: &[(&str, Test)] = &[
    ("ctr::runs_an_image_that_containerd_is_asked_about", ctr::without_annotations),
    ("ctr::runs_an_image_that_containerd_tells_about", ctr::with_annotations),
    ("image_sets::run_as_rafs_pulled_by_ctr", image_sets::by_ctr),
];

/// What is there with 2.4 and not with 2.2, which shows an id-mapped container nothing of a mount below its root, and does not
/// unpack layers at the same time.
const TESTS_ON_2_4: &[(&str, Test)] = &[
    ("id_mapped::a_container_sees_its_own_ids", id_mapped::sees_its_own_ids),
    ("image_sets::run_as_rafs_unpacked_at_the_same_time", image_sets::run_lazily_unpacked_apart),
    ("parallel_unpack::layers_keep_their_parents", parallel_unpack::layers_keep_their_parents),
];

/// Those that are run with a containerd of series 2 as well: what goes through its pull and its snapshots.
const ALSO_ON_2: &[&str] = &[
    "same_tree::a_container_sees_the_tree_that_buildkit_exports",
    "image_sets::run_as_rafs_under_their_own_names",
    "image_sets::are_outlived_by_what_was_pulled",
    "image_sets::changes_of_a_container_are_taken_if_that_is_wanted",
    "beside_plain::our_snapshotter_runs_the_nydus_image_if_told_to",
    "beside_plain::an_index_of_a_build_runs_with_and_without_us",
    "lazy_run::a_pull_reads_no_byte_of_a_blob_and_a_start_reads_little",
    "plain_images::a_plain_image_runs_with_our_snapshotter",
    "names::all_names_of_an_image_are_read_from",
    "certs_dir::mirrors_of_containerd_are_read_from",
    "certs_dir::changes_are_noticed_while_an_image_is_mounted",
    "https::a_registry_of_the_operators_own_authority_is_read_from",
    "read_only_root::is_read_and_not_written",
    "pull_secrets::of_the_pods_on_the_node_are_used_and_renewed",
    "credentials::a_pull_is_refused_without_credentials_of_the_node",
    "credentials::a_pull_is_refused_with_what_the_registry_says_of_a_blob",
    "tenants::read_what_their_own_repositories_give",
    "unmounted::an_image_that_somebody_unmounted_is_mounted_again",
    "restart::a_container_outlives_the_snapshotter",
    "restart::a_container_reads_on_over_kills_of_the_daemon",
    "restart::a_container_reads_on_while_another_program_takes_over",
    "kills::under_load_show_no_error_and_no_wrong_byte",
    "shared_layers::a_new_version_leaves_the_old_one_alone",
    "shared_layers::an_image_comes_back_whose_layers_another_uses",
    "shared_layers::nothing_stays_cached_of_images_that_are_gone",
    "remove_image::unmounts_and_frees_the_cache",
    "expired_token::is_renewed_while_a_container_runs",
    "expired_token::is_never_noticed_by_containers_that_read",
    "cache_room::within_a_quota_what_runs_is_kept_and_what_ended_gives_way",
    "cache_room::on_a_full_disk_containers_start_and_read_on",
    "many_containers::outlive_restarts_of_the_snapshotter",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share servers and look at what these log.
    arguments.test_threads.get_or_insert(1);
    let ready = Fixture::new().and_then(|fixture| Ok((fixture, ContainerdVersion::of_series_2()?)));
    let (fixture, version) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            eprintln!("the end-to-end tests cannot start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials: Vec<Trial> =
        TESTS.iter().map(|&(name, test)| trial_of(name, test, fixture.clone())).collect();
    let also = TESTS.iter().filter(|(name, _)| ALSO_ON_2.contains(name));
    let newest = if version == ContainerdVersion::V2_2 { &[] } else { TESTS_ON_2_4 };
    for (name, test) in also.chain(TESTS_ON_2).chain(newest) {
        let name = format!("{name}_on_containerd_{}", version.to_string().replace('.', "_"));
        trials.push(trial_of(&name, *test, fixture.on(version)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(fixture);
    conclusion.exit_code()
}

fn trial_of(name: &str, test: Test, fixture: Fixture) -> Trial {
    let missing = fixture.missing().map(ToOwned::to_owned);
    let with_logs = move || test(&fixture).map_err(|error| anyhow!("{error:#}\n{}", fixture.logs()));
    trial(name, missing.as_deref(), with_logs)
}
