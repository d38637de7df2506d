//! Several saves at once, as an exporter's builds have them: they share room on this machine, and nothing else.

use std::fs;
use std::time::Duration;

use cluster::save::{Destination, LayerSpace, SaveOptions};
use image::layer::Slots;
use tokio::time::{sleep, timeout};

use super::rafs::{World, client_in, opened, repository_of};
use super::{locked, saved_in};
use crate::support::held::Held;
use crate::support::{Registry, layer};

/// How long something may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// About what the layers of the world take as they are fetched: no other one fits then.
const ALL_LAYERS: u64 = 10 << 20;

/// What their files take alone.
const LAYERS: u64 = 9_700_000;

/// Enough for the documents of the world, and for no layer.
const NO_LAYER: u64 = 512 << 10;

async fn wait_for(what: &str, reached: impl Fn() -> bool) {
    let reaching = async {
        while !reached() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reaching).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_at_once_share_their_room_and_all_end() {
    let world = World::new().await;
    let held = Held::start(world.from.host()).await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let slow = locked(&dir, &World::list_at(&held.host), &[]).await;
    let quick = locked(&dir, &world.list(), &[]).await;
    let [first, second] =
        ["first:v1", "second:v1"].map(|name| format!("{}/{name}", to.host()).parse().unwrap());
    let [to_first, to_second] =
        [&first, &second].map(|name: &registry::Reference| Destination::Repository(name.clone()));
    let space = LayerSpace::new(ALL_LAYERS);
    let options = SaveOptions { layer_space: space.clone(), ..SaveOptions::default() };
    let client = client_in(dir.path());

    // All room is the first one's, whose registry says no more. The other one gets to its end all the same.
    held.let_through(NO_LAYER);
    let begins = saved_in(&client, &slow, dir.path(), &to_first, &options);
    let follows = async {
        wait_for("the first save's layers wait", || space.left() < ALL_LAYERS).await;
        let second = saved_in(&client, &quick, dir.path(), &to_second, &options);
        let second = timeout(PATIENCE, second).await.expect("it does not wait for the first one");
        assert!(space.left() < 1 << 20, "{} bytes are free", space.left());
        held.let_through(u64::MAX);
        second
    };
    let ((_, failed), (_, other)) = tokio::join!(begins, follows);
    assert!(failed.is_empty() && other.is_empty(), "{failed:?} {other:?}");
    assert_eq!(space.left(), ALL_LAYERS);
    let (first, second) = (opened(&first).await, opened(&second).await);
    world.check(&first).await;
    world.check(&second).await;
    // Where all wait at once they have a blob of what they share. One after the other finds it in the blobs of those before it.
    assert_eq!((first.table().unwrap().blobs.len(), second.table().unwrap().blobs.len()), (5, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_to_one_repository_at_once_keep_layers_apart_and_one_that_ends_early_leaves_none() {
    let world = World::new().await;
    let held = Held::start(world.from.host()).await;
    let (to, dir, spool) =
        (Registry::start().await, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let slow = locked(&dir, &World::list_at(&held.host), &[]).await;
    let quick = locked(&dir, &world.list(), &[]).await;
    let [first, second] = ["v1", "v2"].map(|tag| Destination::Repository(repository_of(&to, tag)));
    let space = LayerSpace::new(ALL_LAYERS);
    let options = SaveOptions { layer_space: space.clone(), keeps_layers: false, ..SaveOptions::default() };
    let client = client_in(spool.path());
    let folders = || fs::read_dir(spool.path()).unwrap().count();

    held.let_through(NO_LAYER);
    let mut begins = Box::pin(saved_in(&client, &slow, dir.path(), &first, &options));
    tokio::select! {
        _ = &mut begins => panic!("its registry says no more"),
        () = wait_for("the first save's layers wait", || folders() > 0 && space.left() < ALL_LAYERS) => {}
    }
    tokio::select! {
        _ = &mut begins => panic!("its registry says no more"),
        (_, failed) = saved_in(&client, &quick, dir.path(), &second, &options) => {
            assert!(failed.is_empty(), "{failed:?}");
        }
    }
    world.check(&opened(&repository_of(&to, "v2")).await).await;
    // Interrupted, and failed after some of it was converted.
    drop(begins);
    wait_for("nothing is left", || folders() == 0 && space.left() == ALL_LAYERS).await;
    let image = world.from.image("gone", "linux/amd64", &[&layer(&[("gone", &[1; 100])])]).await;
    world.from.tag("gone", "v1", image.content.clone()).await;
    let list = format!("{}{}/gone:v1\n", world.list(), world.from.host());
    let lock = locked(&dir, &list, &[]).await;
    fs::remove_file(world.from.data(&image.digest.parse().unwrap())).unwrap();
    let third = Destination::Repository(repository_of(&to, "v3"));
    let (_, failed) = saved_in(&client, &lock, dir.path(), &third, &options).await;
    assert_eq!(failed.len(), 1);
    wait_for("nothing is left", || folders() == 0 && space.left() == ALL_LAYERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_at_once_convert_so_many_layers_as_all_of_them_may() {
    let world = World::new().await;
    let (to, dir, spool) =
        (Registry::start().await, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &[]).await;
    let [first, second, third] =
        ["v1", "v2", "v3"].map(|tag| Destination::Repository(repository_of(&to, tag)));
    let (space, slots) = (LayerSpace::new(8 * ALL_LAYERS), Slots::new(1));
    let options = SaveOptions {
        layer_space: space.clone(),
        keeps_layers: false,
        slots: slots.clone(),
        ..SaveOptions::default()
    };
    let client = client_in(spool.path());
    let converted = || {
        let folders = fs::read_dir(spool.path()).unwrap().map(|folder| folder.unwrap().path());
        folders.map(|folder| fs::read_dir(folder).unwrap().count()).sum::<usize>()
    };

    let taken = slots.take().await;
    let both = async {
        tokio::join!(
            saved_in(&client, &lock, dir.path(), &first, &options),
            saved_in(&client, &lock, dir.path(), &second, &options)
        )
    };
    let meanwhile = async {
        let both_wait = || 8 * ALL_LAYERS - space.left() >= 2 * LAYERS;
        wait_for("both begin with their layers", both_wait).await;
        // As long as this takes nobody else converts anything.
        let (_, failed) =
            saved_in(&super::client(), &lock, dir.path(), &third, &SaveOptions::default()).await;
        assert!(failed.is_empty(), "{failed:?}");
        assert!(both_wait() && converted() == 0, "somebody converted a layer without a slot");
        drop(taken);
    };
    let (((_, one), (_, other)), ()) = tokio::join!(both, meanwhile);
    assert!(one.is_empty() && other.is_empty(), "{one:?} {other:?}");
    for tag in ["v1", "v2"] {
        world.check(&opened(&repository_of(&to, tag)).await).await;
    }
}
