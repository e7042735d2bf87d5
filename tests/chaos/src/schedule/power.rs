//! Power cuts of an ext4 of the run's own, a file system that gives up, a disk that is full.

use std::{collections::HashSet, fs};

use anyhow::Context as _;
use rand::RngExt as _;
use rimstone_tests::{group::event::now_ns, skip::why_no_mounts};

use crate::{
    event::{Event, What},
    world::World,
};

/// Cuts in a run.
const CUTS: usize = 8;

pub(super) fn why_not() -> Option<String> {
    why_no_mounts().map(str::to_owned)
}

/// Cuts the power and kills the server, in either order; afterwards there is what the device has. The server does not
/// run.
pub(super) async fn cut(world: &mut World) -> anyhow::Result<()> {
    let kill_first = world.random.random_bool(0.3);
    let switch = world.mount.as_ref().context("this run has its own file system")?.switch();
    world.device(true);
    if kill_first {
        world.kill();
        switch.cut();
    } else {
        switch.cut();
        // Whatever is acknowledged now counts too.
        world.moment(3_000).await;
        world.kill();
    }
    world.fired("power cut");
    let mount = world.mount.as_mut().context("this run has its own file system")?;
    mount.unmount();
    mount.mount();
    world.device(false);
    Ok(())
}

pub(super) async fn cuts(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..CUTS {
        let more = world.random.random_range(20..120);
        world.acknowledge_more(more).await?;
        world.moment(3_000).await;
        // After a kill the page cache has more than the device: what a start serves of it must be on the device.
        match world.random.random_range(0..4) {
            0 => {
                world.kill();
                world.fired("SIGKILL");
                world.start().await?;
                world.moment(5_000).await;
            }
            1 => {
                // In the middle of a start, or just behind it.
                world.kill();
                world.fired("SIGKILL");
                world.spawn();
                world.moment(250_000).await;
            }
            _ => {}
        }
        cut(world).await?;
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}

/// The file system goes read-only under a running server.
pub(super) async fn gives_up(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..2 {
        let more = world.random.random_range(50..300);
        world.acknowledge_more(more).await?;
        world.device(true);
        world.mount.as_ref().context("this run has its own file system")?.abort();
        world.fired("read-only");
        let since = now_ns();
        // Readers go on, writers are refused.
        world.moment(300_000).await;
        if let Some(process) = acknowledged_since(&world.load.recorder.events(), since) {
            world.wrong(format!("{process} has an acknowledgement from a file system that is read-only"));
        }
        world.kill();
        let mount = world.mount.as_mut().context("this run has its own file system")?;
        mount.unmount();
        mount.mount();
        world.device(false);
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}

/// Who sent something new since then and was told that it is stored.
fn acknowledged_since(events: &[Event], since: u64) -> Option<String> {
    let later = || events.iter().filter(|event| event.at_ns > since);
    let asked: HashSet<u64> =
        later().filter(|event| matches!(event.what, What::Send { .. })).map(|event| event.op).collect();
    let new = |event: &&Event| {
        matches!(event.what, What::Sent { duplicate: false, .. }) && asked.contains(&event.op)
    };
    later().find(new).map(|event| event.process.clone())
}

/// The disk is full, and then it is not: produce goes on by itself.
pub(super) async fn full(world: &mut World) -> anyhow::Result<()> {
    let ballast = world.mount.as_ref().context("this run has its own file system")?.point().join("ballast");
    for _ in 0..3 {
        let more = world.random.random_range(50..300);
        world.acknowledge_more(more).await?;
        let left = world.random.random_range(0..200) << 10;
        fill(&ballast, left);
        let recorder = world.load.recorder.clone();
        let before = refusals(&recorder.events());
        let refused = || refusals(&recorder.events()) > before;
        if !world.until("a full disk is told", refused).await? {
            world.wrong("I4: the server has ended on a full disk");
            world.start().await?;
        }
        world.fired("disk full");
        world.moment(50_000).await;
        let again = world.random.random_bool(0.3);
        if again {
            // Killed while there is no room.
            world.kill();
        }
        fs::remove_file(&ballast)?;
        if again {
            world.start().await?;
        }
        world.acknowledge_more(50).await?;
    }
    Ok(())
}

fn refusals(events: &[Event]) -> usize {
    let full = |what: &What| match what {
        What::Refused { why } | What::Unknown { why } => {
            why.contains("DISK_FULL") || why.contains("No space")
        }
        _ => false,
    };
    events.iter().filter(|event| full(&event.what)).count()
}

/// Fills a file until its file system has no more than so much room.
fn fill(path: &std::path::Path, left: u64) {
    use std::io::Write as _;
    const PIECE: usize = 64 << 10;
    let mut file = fs::File::create(path).expect("an empty file can be made");
    let piece = vec![7; PIECE];
    while file.write_all(&piece).is_ok() {}
    // It may not take the last of it; what is over is given back.
    let length = file.metadata().map_or(0, |data| data.len());
    drop(file.set_len(length.saturating_sub(left)));
}
