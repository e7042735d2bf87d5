//! Where in a message elements repeat, as the descriptors of the API have it: all that has to be known to count
//! them without decoding.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{
    DescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use rimstone_proto::FILE_DESCRIPTOR_SET;

/// The place of a message in [`Api::shapes`].
pub(super) type ShapeId = usize;

/// A field that matters: it repeats, or something in it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// It may come many times, and each is kept.
    pub(super) repeats: bool,
    /// Its occurrences have repeating fields of their own.
    pub(super) inside: Option<ShapeId>,
    /// Many numbers may lie in one occurrence.
    pub(super) packed: bool,
}

/// The fields of one message that matter, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shape(Vec<Option<Field>>);

/// A call of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) input: ShapeId,
    /// The client sends many messages.
    pub(super) streams: bool,
}

/// All calls and messages of the API.
#[derive(Debug)]
pub(super) struct Api {
    shapes: Vec<Shape>,
    calls: HashMap<String, Call>,
}

impl Api {
    /// The API of this server.
    pub(super) fn ours() -> Self {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the build wrote it");
        Self::of(&files)
    }

    fn of(files: &FileDescriptorSet) -> Self {
        let mut messages = HashMap::new();
        for file in &files.file {
            collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
        }
        let mut shapes = Shapes { messages, ids: HashMap::new(), shapes: Vec::new() };
        let mut calls = HashMap::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let input = shapes.of(method.input_type());
                    calls.insert(path, Call { input, streams: method.client_streaming() });
                }
            }
        }
        Self { shapes: shapes.shapes, calls }
    }

    /// The call with this path; `None` for those of other packages (health, reflection).
    pub(super) fn call(&self, path: &str) -> Option<Call> {
        self.calls.get(path).copied()
    }

    pub(super) fn field(&self, shape: ShapeId, number: u64) -> Option<Field> {
        let number = usize::try_from(number).ok()?;
        self.shapes.get(shape)?.0.get(number).copied().flatten()
    }
}

fn collect<'a>(
    scope: &str,
    messages: &'a [DescriptorProto],
    into: &mut HashMap<String, &'a DescriptorProto>,
) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        collect(&name, &message.nested_type, into);
        into.insert(name, message);
    }
}

struct Shapes<'a> {
    messages: HashMap<String, &'a DescriptorProto>,
    ids: HashMap<String, ShapeId>,
    shapes: Vec<Shape>,
}

impl Shapes<'_> {
    fn of(&mut self, name: &str) -> ShapeId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.shapes.len();
        self.ids.insert(name.to_owned(), id);
        self.shapes.push(Shape::default());
        let Some(&message) = self.messages.get(name) else { return id };
        let mut shape = Shape::default();
        for field in &message.field {
            let repeats = field.label() == Label::Repeated;
            let inside = (field.r#type() == Type::Message)
                .then(|| self.of(field.type_name()))
                .filter(|&inside| inside == id || !self.shapes[inside].0.is_empty());
            if !repeats && inside.is_none() {
                continue;
            }
            let number = usize::try_from(field.number()).expect("field numbers are positive");
            if shape.0.len() <= number {
                shape.0.resize(number + 1, None);
            }
            let packed = repeats
                && !matches!(field.r#type(), Type::Message | Type::String | Type::Bytes | Type::Group);
            shape.0[number] = Some(Field { repeats, inside, packed });
        }
        self.shapes[id] = shape;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::{super::scan::DEPTH_MAX, *};

    fn depth(api: &Api, shape: ShapeId, above: usize) -> usize {
        assert!(above < DEPTH_MAX, "messages of the API nest too deeply to be counted");
        let inside = api.shapes[shape].0.iter().flatten().filter_map(|field| field.inside);
        1 + inside.map(|inside| depth(api, inside, above + 1)).max().unwrap_or(0)
    }

    #[test]
    fn every_call_is_known_and_no_message_is_too_deep() {
        let api = Api::ours();
        let deepest = api.calls.values().map(|call| depth(&api, call.input, 0)).max();
        // ProduceStreamRequest, its append, its request, its records.
        assert!(deepest >= Some(4), "{deepest:?}");
        let unary = api.call("/rimstone.v1.ProduceService/Produce").unwrap();
        let stream = api.call("/rimstone.v1.ProduceService/ProduceStream").unwrap();
        assert!(!unary.streams && stream.streams);
        assert_eq!(api.call("/grpc.health.v1.Health/Check"), None);
    }

    #[test]
    fn what_repeats_is_found() {
        let api = Api::ours();
        let produce = api.call("/rimstone.v1.ProduceService/Produce").unwrap().input;
        let records = api.field(produce, 2).unwrap();
        let headers = api.field(records.inside.unwrap(), 3).unwrap();
        assert!(records.repeats && headers.repeats && headers.inside.is_none());
        // Batches repeat, and nothing repeats in them; the topic does not repeat; there is no field 99.
        let batches = api.field(produce, 3).unwrap();
        assert!(batches.repeats && batches.inside.is_none());
        assert_eq!((api.field(produce, 1), api.field(produce, 99)), (None, None));
        // A map is a repeated message.
        let create = api.call("/rimstone.v1.AdminService/CreateTopic").unwrap().input;
        assert!((0..20).filter_map(|number| api.field(create, number)).any(|field| field.repeats));
    }
}
