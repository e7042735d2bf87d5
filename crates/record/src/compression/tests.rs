use proptest::prelude::*;

use super::*;

const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn text(bytes: usize) -> Vec<u8> {
    b"the wall that flowing water builds; ".iter().copied().cycle().take(bytes).collect()
}

/// Compresses as other people's clients do.
fn foreign(compression: Compression, data: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => data.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Snappy => xerial(data),
        Compression::Lz4 => lz4(data),
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

/// As Kafka's SnappyOutputStream: blocks of 32 KiB, each behind its length.
fn xerial(data: &[u8]) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for block in data.chunks(32 << 10) {
        let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
        out.extend((block.len() as u32).to_be_bytes());
        out.extend(block);
    }
    out
}

fn open(compression: Compression, body: Vec<u8>, limits: &Limits) -> Result<Bytes, BatchError> {
    decompress(compression, body.into(), limits)
}

#[test]
fn every_codec_is_read() {
    for compression in CODECS {
        for size in [0, 1, 1000, 300_000] {
            let data = text(size);
            let body = foreign(compression, &data);
            let read = open(compression, body, &Limits::default()).unwrap();
            assert!(read == data, "{compression} {size}");
        }
    }
    let raw = snap::raw::Encoder::new().compress_vec(&text(1000)).unwrap();
    assert_eq!(open(Compression::Snappy, raw, &Limits::default()).unwrap(), text(1000));
}

#[test]
fn frames_that_other_programs_wrote_are_read() {
    // `printf 'rimstone rimstone rimstone rimstone' | zstd -c`, `| lz4 -c` and `| gzip -nc`.
    let expected = &b"rimstone rimstone rimstone rimstone"[..];
    for (compression, hex) in
        [(Compression::Zstd, ZSTD_CLI), (Compression::Lz4, LZ4_CLI), (Compression::Gzip, GZIP_CLI)]
    {
        let body = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        assert_eq!(open(compression, body.collect(), &Limits::default()).unwrap(), expected, "{compression}");
    }
}

const ZSTD_CLI: &str = "28b52ffd04587d00004872696d73746f6e65200100b4cb119c9f0898";
const LZ4_CLI: &str = "04224d186440a7130000009f72696d73746f6e65200900025073746f6e650000000065e24d3c";
const GZIP_CLI: &str = "1f8b08000000000000032bcacc2d2ec9cf4b5528c2c90000843b2a3823000000";

#[test]
fn the_absolute_bound_holds() {
    let limits = Limits { uncompressed_bytes: 100_000, ..Limits::default() };
    for compression in CODECS {
        assert_eq!(open(compression, foreign(compression, &text(100_000)), &limits).unwrap().len(), 100_000);
        let body = foreign(compression, &text(100_001));
        let compressed = body.len();
        assert_eq!(
            open(compression, body, &limits),
            Err(BatchError::UncompressedTooLarge { compression, compressed, limit: 100_000 })
        );
    }
}

#[test]
fn the_bound_by_ratio_holds_above_its_floor() {
    let floor = crate::limits::RATIO_FLOOR;
    let limits = Limits { ratio: 2, ..Limits::default() };
    for compression in CODECS {
        assert_eq!(open(compression, foreign(compression, &vec![0; floor]), &limits).unwrap().len(), floor);
        let body = foreign(compression, &vec![0; floor * 4]);
        let limit = floor.max(body.len() * 2);
        assert!(limit < floor * 4);
        assert_eq!(
            open(compression, body.clone(), &limits),
            Err(BatchError::UncompressedTooLarge { compression, compressed: body.len(), limit })
        );
    }
}

#[test]
fn lengths_that_lie_allocate_nothing() {
    let limits = Limits::default();
    let reason = |compression, body: &[u8]| match open(compression, body.to_vec(), &limits) {
        Err(BatchError::Decompress { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    // A block of snappy that claims 60 MB, below the limit by size.
    let claim = [0x80, 0x8e, 0xce, 0x1c, 0x00, b'x'];
    let long = Limits { ratio: u32::MAX, ..limits };
    assert!(matches!(
        open(Compression::Snappy, claim.to_vec(), &long),
        Err(BatchError::Decompress { reason, .. }) if reason == "6 bytes cannot become 60000000"
    ));
    let framed = [b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\xff\xff\xff\xff".as_slice(), b"x"].concat();
    assert_eq!(reason(Compression::Snappy, &framed), "the framing is cut off");
    // A frame of zstd with a window of 1 TiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 30 << 3, 0x01, 0x00, 0x00];
    assert!(reason(Compression::Zstd, &window).contains("too big"));
    // A frame of zstd that claims 4 GiB in one segment.
    let single = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00, 0x00];
    assert!(reason(Compression::Zstd, &single).contains("too big"));
}

#[test]
fn what_follows_the_end_is_refused() {
    for compression in CODECS {
        let mut body = foreign(compression, &text(1000));
        body.extend(b"more");
        assert!(
            matches!(open(compression, body, &Limits::default()), Err(BatchError::Decompress { .. })),
            "{compression}"
        );
    }
}

#[test]
fn codes_and_names() {
    for code in 0..5 {
        assert_eq!(Compression::from_code(code).unwrap().code(), code);
    }
    assert_eq!(Compression::from_code(5), Err(BatchError::CompressionCode { got: 5 }));
    assert_eq!(Compression::Zstd.to_string(), "zstd");
}

proptest! {
    #[test]
    fn mutated_frames_do_not_panic_and_stay_within_bounds(
        codec in 0usize..4,
        data in prop::collection::vec(0u8..4, 0..2000),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        shorten: bool,
    ) {
        let mut body = foreign(CODECS[codec], &data);
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        if shorten {
            body.truncate(cut.index(body.len()));
        }
        let limits = Limits { uncompressed_bytes: 3000, ..Limits::default() };
        if let Ok(read) = open(CODECS[codec], body, &limits) {
            prop_assert!(read.len() <= 3000);
        }
    }
}

#[test]
fn what_is_wrong_is_said_in_words() {
    for compression in CODECS {
        let body = compress(compression, &text(2_000));
        let damaged = (0..body.len()).flat_map(|at| {
            let mut flipped = body.clone();
            flipped[at] ^= 0x5a;
            [flipped, body[..at].to_vec()]
        });
        for body in damaged {
            let Err(error) = open(compression, body, &Limits::default()) else { continue };
            let text = error.to_string();
            assert!(!text.contains("Error(") && !text.contains('{'), "debug text: {text}");
        }
    }
}
