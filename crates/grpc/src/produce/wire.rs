//! Produce requests and their answers as they go over the wire, without a struct for each record: records stay where
//! they came until batches are made of them, and positions are written where they go. What the generated structs cost
//! is told in ADR 0019.
//!
//! The rules are those of the generated decoder and encoder, which tests compare with.

use std::str;

use prost::{
    DecodeError, Message,
    bytes::{Buf as _, BufMut as _, Bytes, BytesMut},
    encoding::{
        DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_varint,
        encoded_len_varint, skip_field,
    },
};
use rimstone_broker::{InvalidRequest, ProduceError, RecordPosition, RecordView, Records};
use rimstone_proto::v1;
use rimstone_record::HeaderParts;
use rimstone_types::{PartitionIndex, Timestamp};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// The field of `ProduceRequest` that has records, and the one that has batches.
const RECORDS_FIELD: u32 = 2;
const BATCHES_FIELD: u32 = 3;

/// How a `RecordPosition` begins in a `ProduceResponse`, and its own fields: numbers of fields with their wire types.
const POSITION_KEY: u8 = 2 << 3 | 2;
const PARTITION_KEY: u8 = 1 << 3;
const OFFSET_KEY: u8 = 2 << 3;

/// A `ProduceRequest`.
#[derive(Debug)]
pub(super) struct WireRequest {
    /// What it has beside records.
    pub(super) rest: v1::ProduceRequest,
    pub(super) records: WireRecords,
}

impl WireRequest {
    /// Takes the message apart as far as its records.
    pub(super) fn decode(message: Bytes) -> Result<Self, DecodeError> {
        let (mut rest, mut count, mut left) = (BytesMut::new(), 0, &message[..]);
        while left.has_remaining() {
            let before = left;
            let (field, wire_type) = decode_key(&mut left)?;
            if field == BATCHES_FIELD {
                return Self::with_batches(message);
            }
            skip_field(wire_type, field, &mut left, DecodeContext::default())?;
            if field == RECORDS_FIELD {
                check_wire_type(WireType::LengthDelimited, wire_type)?;
                count += 1;
            } else {
                rest.put_slice(&before[..before.len() - left.len()]);
            }
        }
        let rest = v1::ProduceRequest::decode(rest)?;
        Ok(Self { rest, records: WireRecords { message, count } })
    }

    /// Batches are few and large, and are not copied.
    fn with_batches(message: Bytes) -> Result<Self, DecodeError> {
        let mut rest = v1::ProduceRequest::decode(message.clone())?;
        let count = std::mem::take(&mut rest.records).len();
        Ok(Self { rest, records: WireRecords { message, count } })
    }
}

/// A `ProduceStreamRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WireStreamRequest {
    #[prost(oneof = "WireKind", tags = "1, 2")]
    pub(super) kind: Option<WireKind>,
}

/// What a `ProduceStreamRequest` is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum WireKind {
    #[prost(message, tag = "1")]
    Open(v1::ProduceStreamOpen),
    #[prost(message, tag = "2")]
    Append(WireAppend),
}

/// A `ProduceStreamAppend`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WireAppend {
    #[prost(uint64, tag = "1")]
    pub(super) correlation_id: u64,
    /// A message in a message is a length and bytes. Should it come in parts, they are one behind the other.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    request: Vec<Bytes>,
}

impl WireAppend {
    /// The request, if there is one.
    pub(super) fn request(&mut self) -> Option<Result<WireRequest, DecodeError>> {
        let message = match &mut self.request[..] {
            [] => return None,
            [only] => std::mem::take(only),
            parts => parts.concat().into(),
        };
        Some(WireRequest::decode(message))
    }
}

/// The records of a `ProduceRequest`, where they came.
#[derive(Debug)]
pub(super) struct WireRecords {
    /// All of it.
    message: Bytes,
    count: usize,
}

impl Records for WireRecords {
    fn count(&self) -> usize {
        self.count
    }

    fn bytes(&self) -> usize {
        self.message.len()
    }

    fn each(
        &self,
        visit: &mut dyn FnMut(RecordView<'_>) -> Result<(), ProduceError>,
    ) -> Result<(), ProduceError> {
        let unreadable = |index, error: Unreadable| {
            ProduceError::from(InvalidRequest::new(format!("record {index} of the request: {error}")))
        };
        let (mut index, mut left) = (0, &self.message[..]);
        while index < self.count {
            let record = next_record(&mut left).map_err(|error| unreadable(index, error))?;
            let mut headers = Vec::new();
            let read = read(record, &mut headers).map_err(|error| unreadable(index, error))?;
            visit(RecordView { headers: &headers, ..read })?;
            index += 1;
        }
        Ok(())
    }
}

/// The next record of a request that has one more.
fn next_record<'a>(left: &mut &'a [u8]) -> Result<&'a [u8], Unreadable> {
    loop {
        let (field, wire_type) = decode_key(left)?;
        if field == RECORDS_FIELD {
            return bytes(field, wire_type, left);
        }
        skip_field(wire_type, field, left, DecodeContext::default())?;
    }
}

/// Why a record cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Wire(#[from] DecodeError),
    #[error("field {field} is longer than its message")]
    TooLong { field: u32 },
    #[error("the name of a header is not UTF-8")]
    Name,
}

/// A `Record`; `headers` takes its headers.
fn read<'a>(mut left: &'a [u8], headers: &mut Vec<HeaderParts<'a>>) -> Result<RecordView<'a>, Unreadable> {
    let mut view = RecordView { key: None, value: None, headers: &[], create_time: None, partition: None };
    while left.has_remaining() {
        let (field, wire_type) = decode_key(&mut left)?;
        match field {
            1 => view.key = Some(bytes(field, wire_type, &mut left)?),
            2 => view.value = Some(bytes(field, wire_type, &mut left)?),
            3 => headers.push(header(bytes(field, wire_type, &mut left)?)?),
            4 => view.create_time = Some(Timestamp(number(wire_type, &mut left)? as i64)),
            // As the generated decoder has it: the low bits count.
            5 => view.partition = Some(PartitionIndex(number(wire_type, &mut left)? as u32)),
            _ => skip_field(wire_type, field, &mut left, DecodeContext::default())?,
        }
    }
    Ok(view)
}

/// A `Header`.
fn header(mut left: &[u8]) -> Result<HeaderParts<'_>, Unreadable> {
    let mut parts = HeaderParts { key: "", value: None };
    while left.has_remaining() {
        let (field, wire_type) = decode_key(&mut left)?;
        match field {
            1 => {
                let name = bytes(field, wire_type, &mut left)?;
                parts.key = str::from_utf8(name).map_err(|_| Unreadable::Name)?;
            }
            2 => parts.value = Some(bytes(field, wire_type, &mut left)?),
            _ => skip_field(wire_type, field, &mut left, DecodeContext::default())?,
        }
    }
    Ok(parts)
}

fn bytes<'a>(field: u32, wire_type: WireType, left: &mut &'a [u8]) -> Result<&'a [u8], Unreadable> {
    check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = decode_varint(left)?;
    let length = usize::try_from(length).map_err(|_| Unreadable::TooLong { field })?;
    let (bytes, rest) = left.split_at_checked(length).ok_or(Unreadable::TooLong { field })?;
    *left = rest;
    Ok(bytes)
}

fn number(wire_type: WireType, left: &mut &[u8]) -> Result<u64, DecodeError> {
    check_wire_type(WireType::Varint, wire_type)?;
    decode_varint(left)
}

/// A `ProduceResponse`.
#[derive(Debug)]
pub(super) struct WireResponse {
    pub(super) appends: Vec<v1::PartitionAppend>,
    pub(super) records: Vec<RecordPosition>,
}

impl WireResponse {
    /// As generated code has it.
    pub(super) fn into_generated(self) -> v1::ProduceResponse {
        let position = |position: RecordPosition| v1::RecordPosition {
            partition: position.partition.0,
            offset: position.offset.map(|offset| offset.get()),
        };
        v1::ProduceResponse {
            appends: self.appends,
            records: self.records.into_iter().map(position).collect(),
        }
    }

    fn encode(self, into: &mut impl prost::bytes::BufMut) {
        let appends = v1::ProduceResponse { appends: self.appends, records: Vec::new() };
        // tonic's buffer grows.
        let _ = appends.encode(into);
        for RecordPosition { partition, offset } in self.records {
            let (partition, offset) = (u64::from(partition.0), offset.map(|offset| offset.get()));
            // What is 0 is not written, unless it may be absent.
            let partition_len = if partition == 0 { 0 } else { 1 + encoded_len_varint(partition) };
            let offset_len = offset.map_or(0, |offset| 1 + encoded_len_varint(offset));
            into.put_u8(POSITION_KEY);
            // Two numbers: never more than a byte of length.
            into.put_u8((partition_len + offset_len) as u8);
            if partition != 0 {
                into.put_u8(PARTITION_KEY);
                encode_varint(partition, into);
            }
            if let Some(offset) = offset {
                into.put_u8(OFFSET_KEY);
                encode_varint(offset, into);
            }
        }
    }
}

/// Requests and answers of `Produce`.
#[derive(Debug, Default)]
pub(super) struct WireCodec;

impl Codec for WireCodec {
    type Encode = WireResponse;
    type Decode = WireRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for WireCodec {
    type Item = WireResponse;
    type Error = Status;

    fn encode(&mut self, item: WireResponse, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into);
        Ok(())
    }
}

impl Decoder for WireCodec {
    type Item = WireRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<WireRequest>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        // The code that generated services answer.
        WireRequest::decode(message).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
