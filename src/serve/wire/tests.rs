//! What the real packer wrote comes back to the same bytes; bytes of any other kind are refused with the key.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::policy::array::{Array, Values};

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/protocol").join(name)).unwrap()
}

fn read(bytes: &[u8]) -> Result<Tree, WireError> {
    decode(bytes, &Limits::default())
}

/// What is refused, in words.
fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

fn map(members: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// An array's map with members of any kind, under `images/cam_high`.
fn array(members: Vec<(&str, Tree)>) -> Vec<u8> {
    encode(&map(vec![("images", map(vec![("cam_high", map(members))]))]))
}

fn whole(values: &[i64]) -> Tree {
    Tree::List(values.iter().map(|value| Tree::Int(*value)).collect())
}

#[test]
fn what_pythons_packer_wrote_is_written_again_to_the_same_bytes() {
    let names = ["aloha", "droid", "libero", "reply_first", "reply_next", "metadata_none", "metadata_aloha", "forms"];
    for name in names.into_iter().chain(["arrays"]) {
        let bytes = fixture(&format!("{name}.bin"));
        let tree = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(encode(&tree) == bytes, "{name}: {tree:?}");
    }
}

#[test]
fn an_observation_holds_what_the_robot_sent() {
    let tree = read(&fixture("aloha.bin")).unwrap();
    assert_eq!(tree.get("state"), Some(&Tree::Array(Array::f64([14], vec![1.0; 14]))));
    assert_eq!(tree.get("prompt"), Some(&Tree::Text("do something".to_owned())));
    assert_eq!(tree.get("images").unwrap().get("cam_right_wrist").unwrap().kind(), "uint8[3, 6, 8]");
    assert_eq!(read(&fixture("metadata_none.bin")), Ok(Tree::Map(vec![])));
}

#[test]
fn narrow_dtypes_both_byte_orders_scalars_and_texts_are_held_exactly() {
    let expected: serde_json::Value = serde_json::from_slice(&fixture("widened.json")).unwrap();
    let tree = read(&fixture("widened.bin")).unwrap();
    let Tree::Map(members) = &tree else { panic!("{tree}") };
    assert_eq!(members.len(), expected.as_object().unwrap().len());
    for (key, value) in members {
        let expected = &expected[key];
        let array = match value {
            Tree::Text(text) => {
                assert_eq!(expected["text"], **text, "{key}");
                continue;
            }
            Tree::Array(array) => array,
            other => panic!("{key}: {other}"),
        };
        let held = match expected["dtype"].as_str().unwrap() {
            "int8" | "int16" | "uint16" => "int32",
            "uint32" | "uint64" => "int64",
            "float16" => "float32",
            same => same,
        };
        assert_eq!(array.values.dtype(), held, "{key}");
        assert_eq!(serde_json::json!(array.shape), expected["shape"], "{key}");
        let values = match &array.values {
            Values::U8(x) => serde_json::json!(x),
            Values::I32(x) => serde_json::json!(x),
            Values::I64(x) => serde_json::json!(x),
            Values::Bool(x) => serde_json::json!(x),
            floats => serde_json::json!(floats.to_f64()),
        };
        assert_eq!(values, expected["values"], "{key}");
    }
    // What was widened once stays as it is.
    assert_eq!(read(&encode(&tree)), Ok(tree));
}

#[test]
fn an_arrays_members_may_be_texts_and_stand_in_any_order() {
    let array = array(vec![
        ("shape", whole(&[2])),
        ("data", Tree::Bytes(vec![1, 2])),
        ("more", Tree::Nil),
        ("__ndarray__", Tree::Bool(true)),
        ("dtype", Tree::Text("|u1".to_owned())),
    ]);
    let tree = read(&array).unwrap();
    assert_eq!(tree.get("images").unwrap().get("cam_high"), Some(&Tree::Array(Array::u8([2], vec![1, 2]))));
}

#[test]
fn an_array_that_contradicts_itself_is_refused_by_its_key() {
    let of = |dtype: &str, shape: &[i64], bytes: usize| {
        refused(&array(vec![
            ("__ndarray__", Tree::Bool(true)),
            ("data", Tree::Bytes(vec![255; bytes])),
            ("dtype", Tree::Text(dtype.to_owned())),
            ("shape", whole(shape)),
        ]))
    };
    let start = "images/cam_high: ";
    assert_eq!(
        of("|u1", &[9_999_999_999, 2], 4),
        format!("{start}shape [9999999999, 2] of uint8 wants 19999999998 bytes of data, found 4")
    );
    assert!(of("<f8", &[i64::MAX, i64::MAX, i64::MAX, i64::MAX], 8).contains("found 8"));
    assert!(of("|u1", &[0, 9_999_999_999], 0).contains("wants 9999999999 bytes"));
    assert!(of("<f4", &[1; 9], 4).ends_with("found 9 axes, expected at most 8"));
    assert!(of("<f4", &[-1], 4).contains("a list of lengths as an array's `shape`, found the number -1"));
    for dtype in ["<c8", "<M8[ns]", "|O8", "|S3", "|V4", "f4", "<f3", "\n"] {
        let words = of(dtype, &[1], 4);
        assert!(words.starts_with(&format!("{start}dtype {:?}", dtype.escape_default().to_string())) || dtype != "\n");
        assert!(words.contains("expected booleans, whole numbers"), "{words}");
    }
    assert!(of("<u8", &[1], 8).ends_with("found a uint64 of more than 63 bits"));
    assert!(of("<U1", &[], 4).ends_with("found a text with a character that Unicode lacks"));
    assert!(of("<U1", &[1], 4).ends_with("found an array of texts of shape [1], expected one text"));
}

#[test]
fn an_array_that_lacks_a_member_or_is_another_packages_is_refused() {
    let words = refused(&array(vec![("__ndarray__", Tree::Bool(true)), ("dtype", Tree::Text("|u1".to_owned()))]));
    assert_eq!(words, "images/cam_high: an array without its `shape`");
    let words = refused(&array(vec![("nd", Tree::Bool(true)), ("type", Tree::Nil), ("data", Tree::Nil)]));
    assert!(words.contains("openpi_client.msgpack_numpy"), "{words}");
    let scalar = |dtype: &str, data| {
        refused(&array(vec![("__npgeneric__", Tree::Bool(true)), ("data", data), ("dtype", Tree::Text(dtype.into()))]))
    };
    assert!(scalar("|u1", Tree::Int(256)).ends_with("found the number 256, which uint8 does not hold"));
    assert!(scalar("<i2", Tree::Int(-32769)).contains("int16 does not hold"));
    assert!(scalar("<f4", Tree::Text("a".to_owned())).contains("a value of its dtype"));
}

#[test]
fn claims_are_held_against_the_bytes_that_are_there() {
    // A list and a dictionary of 2³² - 1, a text and bytes of as many.
    assert!(refused(b"\xdd\xff\xff\xff\xff").contains("expected 4294967295 more bytes, found 0"));
    assert!(refused(b"\xdf\xff\xff\xff\xff").contains("expected 8589934590 more bytes, found 0"));
    assert!(refused(b"\x81\xa1a\xdb\xff\xff\xff\xff").starts_with("a: expected 4294967295 more bytes"));
    assert!(refused(b"\xc6\xff\xff\xff\xff").contains("was the message cut?"));
    for cut in 0..fixture("droid.bin").len() {
        assert!(refused(&fixture("droid.bin")[..cut]).contains("was the message cut?"), "{cut}");
    }
}

#[test]
fn limits_are_named_with_what_was_found() {
    let nested = [vec![0x91; 40], vec![0xc0]].concat();
    assert!(refused(&nested).ends_with("found 17 dictionaries and lists in each other, expected at most 16"));
    let many = encode(&Tree::List(vec![Tree::Nil; 70_000]));
    assert_eq!(refused(&many), "the message: found 70000 values, expected at most 65536");
    let arrays = encode(&map(vec![("a", Tree::List(vec![Tree::Array(Array::u8([0], vec![])); 300]))]));
    assert_eq!(refused(&arrays), "a[256]: found 257 arrays, expected at most 256");
    let long = "k".repeat(300);
    let words = refused(&encode(&map(vec![(&long, Tree::Nil)])));
    assert!(words.starts_with("kkk") && words.ends_with("k…: found 300 bytes, expected at most 256"), "{words}");
    let small = Limits { message_bytes: 3, ..Limits::default() };
    assert!(decode(&[0x90; 4], &small).unwrap_err().to_string().contains("found 4 bytes, expected at most 3"));
}

#[test]
fn what_is_no_message_is_refused() {
    assert!(refused(b"").contains("was the message cut?"));
    assert!(refused(b"\xc0\xc0").contains("1 bytes follow its end"));
    // Extension types, and the byte that msgpack never uses.
    for bytes in [&b"\xd6\xff\0\0\0\0"[..], b"\xc7\x01\x05a", b"\xc1"] {
        assert!(refused(bytes).contains("begins no value"), "{bytes:?}");
    }
    assert!(refused(b"\x81\x01\x02").contains("expected a text as a key"));
    assert_eq!(refused(b"\x82\xa1a\x01\xa1a\x02"), "a: the key stands there twice");
    assert_eq!(refused(b"\x82\xa1a\x01\xc4\x01a\x02"), "a: the key stands there twice");
    assert_eq!(refused(b"\x81\xa1a\xa1\xff"), "a: a text that is not UTF-8");
    assert!(refused(b"\x91\xcf\xff\xff\xff\xff\xff\xff\xff\xff").starts_with("[0]: the number 18446744073709551615"));
    assert_eq!(refused(b"\x81\xa3a\nb\xc1")[..6], *r"a\nb: ");
}

/// Any array of up to three axes.
fn arrays() -> impl Strategy<Value = Array> {
    let shape = prop::collection::vec(0_usize..4, 0..4);
    (shape, 0..6, any::<u64>()).prop_map(|(shape, kind, seed)| {
        let all = (0..shape.iter().product::<usize>() as u64).map(|at| (at + 1).wrapping_mul(seed | 1));
        let values = match kind {
            0 => Values::U8(all.map(|x| x as u8).collect()),
            1 => Values::I32(all.map(|x| x as i32).collect()),
            2 => Values::I64(all.map(|x| x as i64).collect()),
            3 => Values::F32(all.map(|x| (x as f32).sin()).collect()),
            4 => Values::F64(all.map(|x| (x as f64).sin()).collect()),
            _ => Values::Bool(all.map(|x| x >> 63 == 1).collect()),
        };
        Array { shape, values }
    })
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Nil),
        any::<bool>().prop_map(Tree::Bool),
        (any::<i64>(), 0..64).prop_map(|(x, shift)| Tree::Int(x >> shift)),
        (-1e9..1e9).prop_map(Tree::Float),
        "\\PC{0,40}".prop_map(Tree::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Tree::Bytes),
        arrays().prop_map(Tree::Array),
    ];
    leaf.prop_recursive(4, 40, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Tree::List),
            prop::collection::btree_map("[a-z/]{0,40}", inner, 0..20)
                .prop_map(|members| Tree::Map(members.into_iter().collect())),
        ]
    })
}

/// What the crate rmpv makes of the bytes, in its own values.
fn elsewhere(tree: &Tree) -> rmpv::Value {
    use rmpv::Value;
    match tree {
        Tree::Nil => Value::Nil,
        Tree::Bool(value) => Value::from(*value),
        Tree::Int(value) => Value::from(*value),
        Tree::Float(value) => Value::from(*value),
        Tree::Text(text) => Value::from(text.as_str()),
        Tree::Bytes(bytes) => Value::from(bytes.as_slice()),
        Tree::List(items) => Value::Array(items.iter().map(elsewhere).collect()),
        Tree::Map(members) => {
            Value::Map(members.iter().map(|(key, value)| (key.as_str().into(), elsewhere(value))).collect())
        }
        Tree::Array(array) => {
            let mut data = vec![];
            crate::data::numpy::put(&array.values, &mut data);
            let name = |name: &str| Value::from(name.as_bytes());
            Value::Map(vec![
                (name("__ndarray__"), Value::from(true)),
                (name("data"), Value::from(data)),
                (name("dtype"), Value::from(crate::data::numpy::name(&array.values))),
                (name("shape"), Value::Array(array.shape.iter().map(|axis| Value::from(*axis)).collect())),
            ])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_comes_back_from_its_bytes_and_another_reader_reads_the_same(tree in trees()) {
        let bytes = encode(&tree);
        let found = read(&bytes);
        prop_assert_eq!(found.as_ref(), Ok(&tree));
        prop_assert_eq!(rmpv::decode::read_value(&mut &bytes[..]).unwrap(), elsewhere(&tree));
    }
}

/// What is read of any bytes is sound, and is written to bytes that say the same.
fn sound(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(tree) = read(bytes) {
        let written = encode(&tree);
        prop_assert_eq!(encode(&read(&written).unwrap()), written);
    }
    Ok(())
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec!["droid.bin", "widened.bin", "forms.bin", "reply_next.bin"]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    (names, changes).prop_map(|(name, changes)| {
        let mut bytes = fixture(name);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_are_a_message_or_an_error(bytes in mutated()) {
        sound(&bytes)?;
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        sound(&bytes)?;
    }
}
