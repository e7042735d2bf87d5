//! How the records of a batch are compressed, and how they are decompressed within bounds.

use std::{
    fmt,
    io::{self, Read, Write},
};

use bytes::Bytes;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use crate::{error::BatchError, limits::Limits};

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy, in Kafka's framing (xerial) or without one.
    Snappy,
    /// LZ4 in its frame format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The compression with a code of the batch format.
    ///
    /// # Errors
    /// [`BatchError::CompressionCode`] above 4.
    pub fn from_code(code: u8) -> Result<Self, BatchError> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            got => Err(BatchError::CompressionCode { got }),
        }
    }

    /// The code in the batch format.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Its name, as Kafka writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Whether we write it.
    pub const fn is_written(self) -> bool {
        matches!(self, Self::None | Self::Lz4)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The largest zstd window that is accepted. A decoder allocates it at once, by what the frame says; 8 MiB is
/// what RFC 8878 recommends to support, and what levels up to 19 need.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// The most that a byte of snappy can stand for: a copy of 64 bytes takes 3, so this is generous.
const SNAPPY_EXPANSION_MAX: usize = 64;

/// What Kafka's snappy begins with: the magic of the xerial framing, then version and compatible version.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// Why decompression stopped.
enum Failure {
    /// The output would be larger than the limit.
    TooLarge,
    /// The input is not what it says.
    Malformed(String),
}

impl Failure {
    fn malformed(reason: impl fmt::Display) -> Self {
        Self::Malformed(reason.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => Self::Malformed(lz4_words(error)),
            None => Self::malformed(innermost(&error)),
        }
    }
}

/// What is wrong with a frame: `lz4_flex` has words only for what is wrong inside a block.
fn lz4_words(error: &lz4_flex::frame::Error) -> String {
    use lz4_flex::frame::Error;
    match error {
        Error::DecompressionError(error) => error.to_string(),
        Error::IoError(error) => error.to_string(),
        Error::HeaderChecksumError => "the checksum of the frame's header is wrong".to_owned(),
        Error::BlockChecksumError => "the checksum of a block is wrong".to_owned(),
        Error::ContentChecksumError => "the checksum of the content is wrong".to_owned(),
        Error::BlockTooBig => "a block is larger than the frame's header says".to_owned(),
        Error::ContentLengthError { expected, actual } => {
            format!("the header tells of {expected} bytes, and there are {actual}")
        }
        Error::WrongMagicNumber => "it does not begin as an LZ4 frame does".to_owned(),
        Error::DictionaryNotSupported => "it needs a dictionary".to_owned(),
        _ => "the frame's header is not one that is understood".to_owned(),
    }
}

/// The error behind an error: ruzstd's outer ones say no more than the debug text of the inner.
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

/// The uncompressed form of `body`, never larger than the limits allow. What is not compressed is not copied.
pub(crate) fn decompress(
    compression: Compression,
    body: Bytes,
    limits: &Limits,
) -> Result<Bytes, BatchError> {
    let limit = limits.uncompressed_max(body.len());
    let result = match compression {
        Compression::None => return Ok(body),
        // Nothing is in it, whatever the codec: so Kafka leaves batches that compaction has emptied.
        _ if body.is_empty() => return Ok(body),
        Compression::Gzip => gunzip(&body, limit),
        Compression::Snappy => unsnappy(&body, limit),
        Compression::Lz4 => unlz4(&body, limit),
        Compression::Zstd => unzstd(&body, limit),
    };
    result.map(Bytes::from).map_err(|failure| match failure {
        Failure::TooLarge => BatchError::UncompressedTooLarge { compression, compressed: body.len(), limit },
        Failure::Malformed(reason) => BatchError::Decompress { compression, reason },
    })
}

/// Reads to the end, but never more than `limit` bytes in all.
fn read_bounded(reader: impl Read, limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let room = limit.saturating_sub(out.len()) as u64;
    let mut reader = reader.take(room + 1);
    reader.read_to_end(out)?;
    if out.len() > limit { Err(Failure::TooLarge) } else { Ok(()) }
}

fn nothing_left(rest: &[u8]) -> Result<(), Failure> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Failure::Malformed(format!("{} bytes follow the end of the frame", rest.len())))
    }
}

fn gunzip(body: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    // Members may follow one another, as in Java's GZIPInputStream.
    read_bounded(flate2::bufread::MultiGzDecoder::new(body), limit, &mut out)?;
    Ok(out)
}

fn unlz4(body: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut decoder = FrameDecoder::new(body);
    read_bounded(&mut decoder, limit, &mut out)?;
    nothing_left(decoder.into_inner())?;
    Ok(out)
}

fn unzstd(body: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let window = ZSTD_WINDOW_MAX;
        let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&mut rest, window)
            .map_err(|error| Failure::malformed(innermost(&error)))?;
        read_bounded(decoder, limit, &mut out)?;
    }
    Ok(out)
}

fn unsnappy(body: &[u8], limit: usize) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    if !body.starts_with(XERIAL_MAGIC) {
        unsnappy_block(body, limit, &mut out)?;
        return Ok(out);
    }
    let cut_off = || Failure::malformed("the framing is cut off");
    let mut rest = body.get(XERIAL_HEADER..).ok_or_else(cut_off)?;
    while !rest.is_empty() {
        let length = rest.split_off(..4).ok_or_else(cut_off)?;
        let length = u32::from_be_bytes(length.try_into().expect("4 bytes were taken"));
        let block = rest.split_off(..length as usize).ok_or_else(cut_off)?;
        unsnappy_block(block, limit, &mut out)?;
    }
    Ok(out)
}

/// Appends one block without framing, whose first bytes say how large it becomes.
fn unsnappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
    let length = snap::raw::decompress_len(block).map_err(Failure::malformed)?;
    if length > limit - out.len() {
        return Err(Failure::TooLarge);
    }
    if length > block.len().saturating_mul(SNAPPY_EXPANSION_MAX) {
        return Err(Failure::Malformed(format!("{} bytes cannot become {length}", block.len())));
    }
    let start = out.len();
    out.resize(start + length, 0);
    let written =
        snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(Failure::malformed)?;
    out.truncate(start + written);
    Ok(())
}

/// Compresses as an LZ4 frame of independent 64 KiB blocks, which is what Kafka's clients write and read.
pub(crate) fn lz4(records: &[u8]) -> Vec<u8> {
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(records.len() / 2));
    encoder.write_all(records).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}

/// Compresses as a client would, for batches that compaction writes again. Snappy without framing, which every
/// reader of the framed form takes too.
pub(crate) fn compress(compression: Compression, records: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => records.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(records).expect("writing to memory does not fail");
            encoder.finish().expect("writing to memory does not fail")
        }
        // An error only beyond 4 GiB: what does not compress is left as it is.
        Compression::Snappy => {
            snap::raw::Encoder::new().compress_vec(records).unwrap_or_else(|_| records.to_vec())
        }
        Compression::Lz4 => lz4(records),
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(records, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

#[cfg(test)]
mod tests;
