//! Records of the catalog and of groups: keys in text, values JSON with a version.

use rimstone_state::group::GroupRecord;

use crate::Random;

const GROUP: [(&str, &str); 8] = [
    ("group:g", r#"{"v":1,"epoch":3,"assignor":"sticky"}"#),
    ("topics:g", r#"{"v":1,"topics":{"t":{"id":"00000000-0000-0000-0000-00000000601d","partitions":3}}}"#),
    ("member:g:m", r#"{"v":1,"instance":null,"topics":["t"],"prefix":"p"}"#),
    ("target:g:m", r#"{"v":1,"partitions":{"00000000-0000-0000-0000-00000000601d":[0,1,2]}}"#),
    ("assignment:g:m", r#"{"v":1,"epoch":3,"previous_epoch":2,"partitions":{},"revoking":{}}"#),
    ("offset:g:t:3", r#"{"v":1,"offset":42,"metadata":"m","committed_ms":1767225600000,"topic_id":null}"#),
    ("epochs", r#"{"v":1,"past":3}"#),
    ("group:g", ""),
];

const CATALOG: [(&str, &str); 5] = [
    (
        "topic:t",
        r#"{"v":1,"id":"00000000-0000-0000-0000-00000000601d","created_ms":0,"settings":{},"counts":[{"generation":1,"from_unnamed_id":0,"count":3}]}"#,
    ),
    ("deleted-topic:00000000-0000-0000-0000-00000000601d", r#"{"v":1}"#),
    ("producer:p", r#"{"v":1,"id":4611686018427387905,"epoch":0,"generation":3}"#),
    ("producer-ids", r#"{"v":1,"unnamed_end":5,"named_end":6}"#),
    ("server", r#"{"v":1,"server_id":"00000000-0000-0000-0000-00000000601d","created_ms":0}"#),
];

/// A record, mutated as text or as a value: numbers at their bounds, fields gone, doubled, of other kinds.
fn input(random: &mut Random, samples: &[(&str, &str)]) -> (Vec<u8>, Option<Vec<u8>>) {
    let (key, value) = *random.one_of(samples);
    let (mut key, mut value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    if random.once_in(3) {
        random.mutate(&mut key);
    }
    if let Ok(mut tree) = serde_json::from_slice::<serde_json::Value>(&value) {
        for _ in 0..random.below(3) {
            mutate_value(random, &mut tree);
        }
        value = serde_json::to_vec(&tree).expect("a value that was read");
    }
    if random.once_in(4) {
        random.mutate(&mut value);
    }
    (key, (!random.once_in(10)).then_some(value))
}

fn mutate_value(random: &mut Random, value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(fields) if !fields.is_empty() && !random.once_in(5) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = random.one_of(&names).clone();
            match random.below(8) {
                0 => drop(fields.remove(&name)),
                1 => drop(fields.insert(format!("{name}x"), Value::Null)),
                _ => mutate_value(random, &mut fields[&name]),
            }
        }
        Value::Array(items) if !items.is_empty() && !random.once_in(4) => {
            let at = random.below(items.len());
            match random.below(4) {
                0 => items.extend(vec![items[at].clone(); random.below(300)]),
                _ => mutate_value(random, &mut items[at]),
            }
        }
        other => {
            *other = match random.below(6) {
                0 => Value::Null,
                1 => Value::from(random.number()),
                2 => Value::from(random.number() as i64),
                3 => Value::from("x".repeat(random.below(300))),
                4 => Value::from(vec![other.clone(); 2]),
                _ => Value::from(1.5),
            }
        }
    }
}

/// One input: what reads is written as it was read.
pub fn group(random: &mut Random) -> bool {
    let (key, value) = input(random, &GROUP);
    let Ok(record) = GroupRecord::decode(Some(&key), value.as_deref()) else { return false };
    let (written_key, written) = record.encode();
    assert_eq!(written_key, key);
    let again = GroupRecord::decode(Some(&written_key), written.as_deref());
    assert_eq!(again.expect("what was written reads"), record);
    true
}

/// One input.
pub fn catalog(random: &mut Random) -> bool {
    let (key, value) = input(random, &CATALOG);
    rimstone_broker::catalog_record_reads(Some(&key), value.as_deref()).is_ok()
}
