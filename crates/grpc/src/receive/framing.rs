//! Where messages begin and end in the body of a call: each has a head of five bytes, a flag and the length.

/// Length of the head: one byte says whether the message is compressed, four how long it is.
const HEAD_LEN: usize = 5;

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A message of so many bytes begins.
    Begin(u32),
    /// Bytes of the message.
    Content(&'a [u8]),
    /// The message is complete.
    End,
}

/// The place in the body.
#[derive(Debug)]
pub(super) enum Framing {
    Head { bytes: [u8; HEAD_LEN], have: usize },
    Message { left: u32 },
}

impl Framing {
    pub(super) fn new() -> Self {
        Self::Head { bytes: [0; HEAD_LEN], have: 0 }
    }

    /// Whether nothing of a message has come yet.
    pub(super) fn is_between(&self) -> bool {
        matches!(self, Self::Head { have: 0, .. })
    }

    /// Takes the next piece off `bytes`; `None` if more must come first.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        match self {
            Self::Head { bytes: head, have } => {
                let (taken, rest) = bytes.split_at(bytes.len().min(HEAD_LEN - *have));
                head[*have..*have + taken.len()].copy_from_slice(taken);
                *have += taken.len();
                *bytes = rest;
                if *have < HEAD_LEN {
                    return None;
                }
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
                *self = Self::Message { left: length };
                Some(Piece::Begin(length))
            }
            Self::Message { left: 0 } => {
                *self = Self::new();
                Some(Piece::End)
            }
            Self::Message { .. } if bytes.is_empty() => None,
            Self::Message { left } => {
                let length = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let (content, rest) = bytes.split_at(length);
                *bytes = rest;
                // Cannot truncate: not more than `left`.
                *left -= length as u32;
                Some(Piece::Content(content))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let body = b"\0\0\0\0\x03abc\0\0\0\0\0\0\0\0\0\x02de\0\0";
        for cut in 1..body.len() {
            let mut framing = Framing::new();
            let mut messages: Vec<(u32, Vec<u8>, bool)> = Vec::new();
            for mut bytes in body.chunks(cut) {
                while let Some(piece) = framing.next(&mut bytes) {
                    match piece {
                        Piece::Begin(length) => messages.push((length, Vec::new(), false)),
                        Piece::Content(content) => messages.last_mut().unwrap().1.extend(content),
                        Piece::End => messages.last_mut().unwrap().2 = true,
                    }
                }
                assert!(bytes.is_empty());
            }
            let expected = [(3, b"abc".to_vec(), true), (0, Vec::new(), true), (2, b"de".to_vec(), true)];
            assert_eq!(messages, expected, "pieces of {cut}");
            assert!(!framing.is_between(), "part of a head has come");
        }
    }
}
