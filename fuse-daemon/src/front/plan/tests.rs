use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use proptest::prelude::*;
use rafs::blob::BatchMember;
use rafs::digest::Digest;

use super::*;

type Request = VecDeque<Extent>;

const LIMITS: Limits = Limits { request_bytes: 1000, ahead_uncompressed_bytes: 4000 };

/// Chunks of these stored sizes, one behind the other; twice as large uncompressed.
fn blob_of(sizes: &[u32]) -> Vec<Chunk> {
    let mut at = 0;
    let chunks = sizes.iter().map(|&size| {
        let chunk = Chunk {
            digest: Digest([0; 32]),
            compressed_offset: at,
            compressed_size: size,
            uncompressed_offset: at * 4096,
            uncompressed_size: size * 2,
            compressed: true,
            batch: None,
        };
        at += u64::from(size);
        chunk
    });
    chunks.collect()
}

fn plan_for(chunks: &[Chunk], demanded: &[u32], wanted: impl Fn(u32) -> bool) -> Vec<Request> {
    let get = |ChunkIndex(index)| chunks.get(index as usize).cloned();
    let demanded: Vec<_> =
        demanded.iter().map(|&index| (ChunkIndex(index), get(ChunkIndex(index)).unwrap())).collect();
    let found = |ChunkIndex(index)| Some(if wanted(index) { ChunkState::Missing } else { ChunkState::Ready });
    plan(&demanded, get, found, LIMITS)
}

fn indexes(request: &Request) -> Vec<u32> {
    request.iter().flat_map(|extent| &extent.chunks).map(|(index, _)| index.0).collect()
}

/// All of its bytes.
fn whole(request: &Request) -> Range<u64> {
    request.front().unwrap().stored.start..request.back().unwrap().stored.end
}

#[test]
fn missing_neighbours_come_along_up_to_the_limit() {
    let requests = plan_for(&blob_of(&[300; 10]), &[2], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[2, 3, 4]]);
    assert_eq!(whole(&requests[0]), 600..1500);
}

#[test]
fn what_is_there_already_ends_a_request() {
    let requests = plan_for(&blob_of(&[100; 10]), &[2, 6], |index| index != 4);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [vec![2, 3], vec![6, 7, 8, 9]]);
}

#[test]
fn a_chunk_larger_than_the_limit_comes_alone() {
    let requests = plan_for(&blob_of(&[5000, 100]), &[0], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[0]]);
}

#[test]
fn chunks_of_zeros_are_not_read_ahead_without_end() {
    let mut chunks = blob_of(&[1; 100]);
    chunks.iter_mut().for_each(|chunk| chunk.uncompressed_size = 1000);
    assert_eq!(indexes(&plan_for(&chunks, &[0], |_| true)[0]), [0, 1, 2, 3, 4]);
}

/// Stored extents of these sizes, one behind the other, that hold this many chunks each: more than one make a batch.
fn blob_with_batches(extents: &[(u32, u32)]) -> Vec<Chunk> {
    let sizes: Vec<u32> = extents.iter().map(|(size, _)| *size).collect();
    let together = blob_of(&sizes).into_iter().zip(extents).enumerate();
    let chunks = together.flat_map(|(index, (chunk, &(_, members)))| {
        (0..members).map(move |member| {
            let batch = BatchMember { index: index as u32, offset: member * chunk.uncompressed_size };
            Chunk { batch: (members > 1).then_some(batch), ..chunk.clone() }
        })
    });
    chunks.collect()
}

fn extents(request: &Request) -> Vec<Range<u64>> {
    request.iter().map(|extent| extent.stored.clone()).collect()
}

#[test]
fn a_batch_is_fetched_once_wherever_it_is_first_read() {
    let chunks = blob_with_batches(&[(100, 1), (100, 4), (100, 1)]);
    for member in 1..5 {
        let requests = plan_for(&chunks, &[member], |_| true);
        assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[1, 2, 3, 4, 5]], "from {member}");
        assert_eq!(extents(&requests[0]), [100..200, 200..300]);
    }
    let requests = plan_for(&chunks, &[2, 4], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[1, 2, 3, 4, 5]], "two readers");
    assert_eq!(extents(&plan_for(&chunks, &[0], |_| true)[0]), [0..100, 100..200, 200..300]);
}

#[test]
fn batches_that_follow_each_other_are_not_mixed_up() {
    let chunks = blob_with_batches(&[(100, 2), (100, 3)]);
    let requests = plan_for(&chunks, &[3], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[2, 3, 4]]);
}

#[test]
fn a_batch_that_does_not_fit_is_whole_all_the_same_but_not_read_ahead() {
    // 3 members of 2,000 bytes are more than may be read ahead.
    let chunks = blob_with_batches(&[(10, 1), (1000, 3), (10, 1)]);
    let requests = plan_for(&chunks, &[2], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[1, 2, 3]]);
    let requests = plan_for(&chunks, &[0], |_| true);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[0]]);
}

#[test]
fn of_a_batch_that_is_fetched_only_what_is_there_or_being_worked_on_is_left_out() {
    let chunks = blob_with_batches(&[(100, 6), (100, 2)]);
    let get = |ChunkIndex(index)| chunks.get(index as usize).cloned();
    let found = |ChunkIndex(index)| match index {
        0 => Some(ChunkState::Claimed),
        1 => Some(ChunkState::Ready),
        4 => None,
        // What an earlier boot left of the second batch may be good.
        6.. => Some(ChunkState::Claimed),
        _ => Some(ChunkState::Missing),
    };
    let requests = plan(&[(ChunkIndex(3), chunks[3].clone())], get, found, LIMITS);
    assert_eq!(requests.iter().map(indexes).collect::<Vec<_>>(), [[0, 2, 3, 5]]);
}

#[test]
fn an_image_that_claims_a_batch_without_end_costs_no_more_than_one_can_hold() {
    let mut chunks = blob_with_batches(&[(100, 70_000)]);
    chunks.iter_mut().for_each(|chunk| chunk.uncompressed_size = 1);
    assert_eq!(indexes(&plan_for(&chunks, &[60_000], |_| true)[0]).len(), 65_536);
    chunks.iter_mut().for_each(|chunk| chunk.uncompressed_size = 8 << 20);
    let requests = plan_for(&chunks, &[5, 6, 7], |_| true);
    assert_eq!(
        requests.iter().map(indexes).collect::<Vec<_>>(),
        [[4, 5], [6, 7]],
        "and no chunk comes twice"
    );
}

proptest! {
    #[test]
    fn a_plan_has_all_that_is_asked_for_once_and_nothing_that_is_there(
        sizes in proptest::collection::vec(1..600_u32, 1..40),
        asked in proptest::collection::btree_set(0..40_u32, 1..10),
        there in proptest::collection::btree_set(0..40_u32, 0..20),
    ) {
        let chunks = blob_of(&sizes);
        let asked: Vec<u32> = asked.into_iter().filter(|&index| (index as usize) < chunks.len()).collect();
        let requests = plan_for(&chunks, &asked, |index| !there.contains(&index));
        let mut seen = BTreeSet::new();
        for request in &requests {
            let stored = whole(request);
            prop_assert!(request.len() == 1 || stored.end - stored.start <= LIMITS.request_bytes);
            let mut end = stored.start;
            for Extent { stored, .. } in request {
                prop_assert_eq!(stored.start, end);
                end = stored.end;
            }
            for index in indexes(request) {
                prop_assert!(seen.insert(index), "chunk {} twice", index);
                prop_assert!(asked.contains(&index) || !there.contains(&index));
            }
        }
        prop_assert!(asked.iter().all(|index| seen.contains(index)));
    }

    #[test]
    fn in_whatever_order_chunks_are_read_no_byte_is_fetched_twice(
        parts in proptest::collection::vec((1..600_u32, prop_oneof![Just(1), 2..6_u32]), 1..20),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 1..60),
    ) {
        let chunks = blob_with_batches(&parts);
        let mut there = BTreeSet::new();
        let mut fetched = Vec::new();
        for read in order {
            let read = read.index(chunks.len()) as u32;
            if there.contains(&read) {
                continue;
            }
            for request in plan_for(&chunks, &[read], |index| !there.contains(&index)) {
                fetched.extend(extents(&request));
                there.extend(indexes(&request));
            }
            prop_assert!(there.contains(&read));
        }
        fetched.sort_by_key(|stored| stored.start);
        prop_assert!(fetched.windows(2).all(|pair| pair[0].end <= pair[1].start), "{:?}", fetched);
    }
}
