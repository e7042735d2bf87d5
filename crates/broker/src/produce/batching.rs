//! Making batches of the plain records of one request, in one pass over them.

use std::{collections::BTreeMap, sync::Arc};

use rimstone_record::{BatchBuilder, Compression, ProducerStamp};
use rimstone_store::{Append, PartitionStore};
use rimstone_types::{Numbering, PartitionIndex};

use super::{
    RecordView, Records, RequestNumbering,
    prepare::{Batched, Place, PreparedAppend, Rules},
};
use crate::error::{ProduceError, RecordTooLarge};

/// What a record takes in a batch beside keys, values and headers, about: lengths, deltas, attributes.
const RECORD_BYTES: usize = 12;

/// Batches that are being built: for each partition one, or without a request number as many as are needed.
#[derive(Debug)]
pub(super) struct Batching<'a> {
    rules: &'a Rules<'a>,
    stamp: Option<ProducerStamp>,
    /// What they would take if all records went to one partition.
    expected_bytes: usize,
    /// In the order in which they were begun.
    begun: Vec<Begun<'a>>,
    /// Which batch of each partition is being filled.
    open: BTreeMap<PartitionIndex, usize>,
    /// The batch of the record before; the next one mostly goes there too.
    last: usize,
    /// Where each record went, by the order of `begun`.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Begun<'a> {
    partition: PartitionIndex,
    store: &'a Arc<dyn PartitionStore>,
    builder: BatchBuilder,
}

impl<'a> Batching<'a> {
    pub(super) fn new(
        rules: &'a Rules<'a>,
        numbering: Option<RequestNumbering>,
        records: &dyn Records,
    ) -> Self {
        let stamp = numbering.map(|RequestNumbering { id, epoch, number }| ProducerStamp {
            id,
            epoch,
            base: number.get(),
            numbering: Numbering::ByRequest,
        });
        let expected_bytes = (records.bytes() + records.count() * RECORD_BYTES).min(rules.batch_bytes_max);
        let places = Vec::with_capacity(records.count());
        Self { rules, stamp, expected_bytes, begun: Vec::new(), open: BTreeMap::new(), last: 0, places }
    }

    /// Takes the next record of the request, for this partition.
    pub(super) fn push(
        &mut self,
        partition: PartitionIndex,
        record: RecordView<'_>,
    ) -> Result<(), ProduceError> {
        let index = self.places.len();
        let record = self.rules.check(record)?;
        let limit = self.rules.batch_bytes_max;
        let mut append = self.batch_of(partition)?;
        let filled = &self.begun[append].builder;
        let would_have = filled.estimated_bytes() + record.encoded_bytes_max();
        if self.stamp.is_none() && !filled.is_empty() && would_have > limit {
            append = self.begin(partition)?;
        }
        let builder = &mut self.begun[append].builder;
        self.places.push(Place { append, record: builder.len() as u32 });
        builder.push_parts(record).map_err(|error| self.rules.unbuildable(partition, index, error))?;
        if builder.len() == 1 && builder.estimated_bytes() > limit {
            let (topic, size) = (self.rules.topic.name.clone(), builder.estimated_bytes() as u64);
            return Err(RecordTooLarge { topic, index, size, limit: limit as u64 }.into());
        }
        self.last = append;
        Ok(())
    }

    fn batch_of(&mut self, partition: PartitionIndex) -> Result<usize, ProduceError> {
        if self.begun.get(self.last).is_some_and(|last| last.partition == partition) {
            return Ok(self.last);
        }
        match self.open.get(&partition) {
            Some(append) => Ok(*append),
            None => self.begin(partition),
        }
    }

    fn begin(&mut self, partition: PartitionIndex) -> Result<usize, ProduceError> {
        let store = self.rules.topic.partition(partition)?;
        // Room for all of them is made for the first batch only: it is the only one of most requests.
        let expected = if self.begun.is_empty() { self.expected_bytes } else { 0 };
        let builder = BatchBuilder::new(Compression::None).expecting(expected);
        let builder = match self.stamp {
            None => builder,
            Some(stamp) => builder.producer(stamp),
        };
        self.begun.push(Begun { partition, store, builder });
        let append = self.begun.len() - 1;
        self.open.insert(partition, append);
        Ok(append)
    }

    /// The batches, in order of their partitions.
    pub(super) fn end(self) -> Result<Batched, ProduceError> {
        let Self { rules, stamp, begun, mut places, .. } = self;
        let mut order: Vec<usize> = (0..begun.len()).collect();
        // Those of one partition stay in their order.
        order.sort_by_key(|append| begun[*append].partition);
        if !order.is_sorted() {
            let mut turn = vec![0; order.len()];
            order.iter().enumerate().for_each(|(place, append)| turn[*append] = place);
            places.iter_mut().for_each(|place| place.append = turn[place.append]);
        }
        let mut begun: Vec<Option<Begun<'_>>> = begun.into_iter().map(Some).collect();
        let mut appends = Vec::with_capacity(begun.len());
        for Begun { partition, store, builder } in order.into_iter().filter_map(|append| begun[append].take())
        {
            if builder.estimated_bytes() > rules.batch_bytes_max {
                return Err(rules.too_large(partition, builder.estimated_bytes()));
            }
            let batch = builder.build();
            let hash = || batch.content_hash(&rules.limits).map_err(|error| rules.corrupt(partition, error));
            let content_hash = stamp.map(|_| hash()).transpose()?;
            let append = Append { batch, expected_end: None, content_hash, now: rules.now };
            appends.push(PreparedAppend { partition, store: Arc::clone(store), append });
        }
        Ok((appends, places))
    }
}
