//! SIGKILL at random, and nothing at all.

use rand::RngExt as _;

use crate::world::World;

/// Kills in a run.
const KILLS: usize = 30;

/// No fault: some work, a clean stop in the middle, more work.
pub(super) async fn quiet(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..2 {
        world.acknowledge_more(1_500).await?;
        world.stop().await;
        world.start().await?;
    }
    world.acknowledge_more(500).await?;
    Ok(())
}

pub(super) async fn kills(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..KILLS {
        let more = world.random.random_range(10..120);
        if !world.acknowledge_more(more).await? {
            world.wrong("I4: the server has ended by itself");
        }
        world.moment(3_000).await;
        world.kill();
        world.fired("SIGKILL");
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}
