//! Walks over the fields of a protobuf message as its bytes arrive and counts what repeats. An element of two
//! bytes on the wire becomes a struct of a hundred; so it is counted before anything is decoded. Nothing is
//! allocated here.

use super::shape::{Api, Field, ShapeId};

/// Messages in messages: more than the API has, see the test in `shape`.
pub(super) const DEPTH_MAX: usize = 8;

/// Numbers that lie packed in one field cost 8 bytes each at most; so many of them count as one element.
const PACKED_PER_ITEM: u64 = 8;

/// Why a message is refused before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// More elements than the limit.
    TooManyItems,
    /// The decoder would refuse it as well, or would read it otherwise than it is counted here.
    Wire(&'static str),
}

/// One message that is being read.
#[derive(Debug, Clone, Copy)]
struct Level {
    shape: ShapeId,
    /// Its bytes that are still to come.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// The number and kind of the next field.
    Tag,
    /// A number that nobody needs.
    Number,
    /// How long the field is.
    Length(Option<Field>),
    /// What is inside a field that does not matter.
    Skip(u64),
}

/// The place in a message.
#[derive(Debug)]
pub(super) struct Scan {
    levels: [Level; DEPTH_MAX],
    /// Index of the innermost message.
    top: usize,
    part: Part,
    /// The number that is being read, and its bits so far.
    number: u64,
    bits: u32,
    items: u64,
    items_max: u64,
}

impl Scan {
    /// A message of this shape and length begins.
    pub(super) fn new(shape: ShapeId, length: u64, items_max: u64) -> Self {
        let levels = [Level { shape, left: length }; DEPTH_MAX];
        Self { levels, top: 0, part: Part::Tag, number: 0, bits: 0, items: 0, items_max }
    }

    /// Elements so far.
    pub(super) fn items(&self) -> u64 {
        self.items
    }

    /// Goes over the next bytes of the message, which must not be more than are left of it.
    pub(super) fn feed(&mut self, api: &Api, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if let Part::Skip(left) = self.part {
                let skipped = left.min(bytes.len() as u64);
                // Cannot truncate: no more than there are.
                bytes = &bytes[skipped as usize..];
                self.part = if skipped == left { Part::Tag } else { Part::Skip(left - skipped) };
                self.consume(skipped)?;
            } else if let header @ 1.. = self.quick(api, bytes)? {
                bytes = &bytes[header..];
            } else {
                let byte = bytes[0];
                bytes = &bytes[1..];
                let number = self.varint(byte)?;
                self.consume(1)?;
                if let Some(number) = number {
                    self.number_read(api, number)?;
                }
            }
            self.leave();
        }
        if self.levels[self.top].left == 0 && !self.between_fields() {
            return Err(Malformed::Wire("it ends within a field"));
        }
        Ok(())
    }

    /// The same for number and length of a field at once, where they lie here as almost all do: in one byte, and in one
    /// to three. Answers how many bytes that were; 0: it is not that simple.
    fn quick(&mut self, api: &Api, bytes: &[u8]) -> Result<usize, Malformed> {
        const LENGTH_DELIMITED: u8 = 2;
        let &[tag @ 8..0x80, ref rest @ ..] = bytes else { return Ok(0) };
        if tag & 7 != LENGTH_DELIMITED || !self.between_fields() {
            return Ok(0);
        }
        let low = |byte: u8| u64::from(byte & 0x7f);
        let (length, size) = match *rest {
            [one @ ..0x80, ..] => (low(one), 1),
            [one, two @ ..0x80, ..] => (low(one) | low(two) << 7, 2),
            [one, two, three @ ..0x80, ..] => (low(one) | low(two) << 7 | low(three) << 14, 3),
            _ => return Ok(0),
        };
        self.consume(1 + size)?;
        let field = api.field(self.levels[self.top].shape, u64::from(tag >> 3));
        if field.is_some_and(|field| field.repeats) {
            self.count(1)?;
        }
        self.length(field, length)?;
        // Cannot truncate: at most 4.
        Ok(1 + size as usize)
    }

    fn consume(&mut self, bytes: u64) -> Result<(), Malformed> {
        let left = &mut self.levels[self.top].left;
        *left = left.checked_sub(bytes).ok_or(Malformed::Wire("a field is longer than its message"))?;
        Ok(())
    }

    /// Leaves messages that have ended between two fields.
    fn leave(&mut self) {
        while self.top > 0 && self.levels[self.top].left == 0 && self.between_fields() {
            self.top -= 1;
        }
    }

    fn between_fields(&self) -> bool {
        matches!(self.part, Part::Tag) && self.bits == 0
    }

    fn varint(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.bits == 63 && byte > 1 {
            return Err(Malformed::Wire("a number has more than 64 bits"));
        }
        self.number |= u64::from(byte & 0x7f) << self.bits;
        if byte & 0x80 != 0 {
            self.bits += 7;
            return Ok(None);
        }
        self.bits = 0;
        Ok(Some(std::mem::take(&mut self.number)))
    }

    fn number_read(&mut self, api: &Api, number: u64) -> Result<(), Malformed> {
        match self.part {
            Part::Tag => self.tag(api, number),
            Part::Length(field) => self.length(field, number),
            Part::Number | Part::Skip(_) => {
                self.part = Part::Tag;
                Ok(())
            }
        }
    }

    fn tag(&mut self, api: &Api, tag: u64) -> Result<(), Malformed> {
        if tag > u64::from(u32::MAX) || tag >> 3 == 0 {
            return Err(Malformed::Wire("a field number is out of range"));
        }
        let field = api.field(self.levels[self.top].shape, tag >> 3);
        self.part = match tag & 7 {
            0 => Part::Number,
            1 => Part::Skip(8),
            2 => Part::Length(field),
            5 => Part::Skip(4),
            3 | 4 => return Err(Malformed::Wire("groups are not part of this API")),
            _ => return Err(Malformed::Wire("a wire type is unknown")),
        };
        if let Part::Skip(bytes) = self.part
            && bytes > self.levels[self.top].left
        {
            return Err(Malformed::Wire("a field is longer than its message"));
        }
        if field.is_some_and(|field| field.repeats) { self.count(1) } else { Ok(()) }
    }

    fn length(&mut self, field: Option<Field>, length: u64) -> Result<(), Malformed> {
        if length > self.levels[self.top].left {
            return Err(Malformed::Wire("a field is longer than its message"));
        }
        self.part = if length == 0 { Part::Tag } else { Part::Skip(length) };
        let Some(field) = field else { return Ok(()) };
        if field.packed {
            self.count(length / PACKED_PER_ITEM)?;
        }
        let Some(shape) = field.inside else { return Ok(()) };
        if self.top + 1 == DEPTH_MAX {
            return Err(Malformed::Wire("messages are nested too deeply"));
        }
        self.levels[self.top].left -= length;
        self.top += 1;
        self.levels[self.top] = Level { shape, left: length };
        self.part = Part::Tag;
        Ok(())
    }

    fn count(&mut self, items: u64) -> Result<(), Malformed> {
        self.items += items;
        if self.items > self.items_max { Err(Malformed::TooManyItems) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
