use std::{sync::atomic::Ordering, time::Duration};

use rimstone_store::Maintained;
use rimstone_types::{ByteCount, Timestamp};

use crate::{catalog::CATALOG_PARTITION, testing::*, *};

#[tokio::test]
async fn one_pass_looks_at_every_partition() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.store.script(fixture.partition("t", 1), |script| {
        script.maintained = Maintained { rolled: 1, deleted: 2, freed: ByteCount(30), more: true };
    });
    let report = fixture.broker.maintain(Timestamp(7)).await;
    let expected = MaintenanceReport {
        partitions: 3,
        rolled: 1,
        deleted: 2,
        freed: ByteCount(30),
        failed: 0,
        more: true,
    };
    assert_eq!(report, expected);
    for id in [fixture.partition("t", 0), fixture.partition("t", 1), CATALOG_PARTITION] {
        assert_eq!(fixture.store.maintained_at(id), [Timestamp(7)]);
    }
}

#[tokio::test]
async fn it_goes_on_by_itself_until_shutdown() {
    let config = BrokerConfig { maintenance_interval: Duration::from_millis(1), ..still() };
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    until("two passes", || fixture.store.maintained_at(partition).len() >= 2).await;
    let now = Timestamp(fixture.clock.0.load(Ordering::Relaxed));
    assert_eq!(fixture.store.maintained_at(partition)[0], now, "by the clock that was passed in");
    soon("the end", fixture.broker.finish_shutdown(Duration::from_secs(20))).await.unwrap();
}
