//! Both documents, as written and as forged.
use serde_json::json;

use super::*;

fn v2() -> Value {
    json!({"chunks":[3,4],"compressor":{"id":"zstd","level":1},"dimension_separator":".","dtype":"<f4","fill_value":null,"filters":null,"order":"C","shape":[3,7],"zarr_format":2})
}

fn v3() -> Value {
    json!({"chunk_grid":{"configuration":{"chunk_shape":[4,6]},"name":"regular"},"chunk_key_encoding":{"name":"default"},
        "codecs":[{"configuration":{"chunk_shape":[2,3],
            "codecs":[{"configuration":{"endian":"little"},"name":"bytes"},{"configuration":{"checksum":false,"level":3},"name":"zstd"}],
            "index_codecs":[{"configuration":{"endian":"little"},"name":"bytes"},{"name":"crc32c"}]},"name":"sharding_indexed"}],
        "data_type":"bfloat16","fill_value":0.0,"node_type":"array","shape":[8,7],"zarr_format":3})
}

fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    *document.pointer_mut(pointer).unwrap() = value;
    document
}

fn parse2(document: &Value) -> Result<ArrayDoc> {
    parse_v2("a/.zarray", document.to_string().as_bytes())
}

fn parse3(document: &Value) -> Result<ArrayDoc> {
    parse_v3("a/zarr.json", document.to_string().as_bytes())
}

#[test]
fn a_v2_document_is_read_and_written_as_orbax_does() {
    let text = r#"{"chunks":[3,4],"compressor":{"id":"zstd","level":1},"dimension_separator":".","dtype":"<f4","fill_value":null,"filters":null,"order":"C","shape":[3,7],"zarr_format":2}"#;
    assert_eq!(write_v2(&[3, 7], &[3, 4], Dtype::F32, 1), text);
    let doc = parse_v2("a/.zarray", text.as_bytes()).unwrap();
    assert_eq!(
        (doc.shape.as_slice(), doc.chunk_shape.as_slice(), doc.dtype),
        ([3, 7].as_slice(), [3, 4].as_slice(), Dtype::F32)
    );
    assert_eq!((doc.chunks(), doc.chunk_bytes()), (2, 48));
    assert_eq!(doc.chunk_key(&[0, 1]), "0.1");
    assert_eq!(doc.chunk_key(&[]), "0");
}

#[test]
fn a_v3_document_presents_its_inner_chunks() {
    let doc = parse3(&v3()).unwrap();
    assert_eq!((doc.outer_shape.as_slice(), doc.chunk_shape.as_slice()), ([4, 6].as_slice(), [2, 3].as_slice()));
    assert_eq!(doc.shard, Some(ShardIndex { at_end: true, crc32c: true, big_endian: false }));
    assert_eq!(doc.codecs, [Codec::Zstd]);
    assert_eq!((doc.chunks(), doc.sub_grid()), (12, vec![2, 2]));
    assert_eq!(doc.chunk_key(&[1, 0]), "c/1/0");
    assert_eq!(doc.chunk_key(&[]), "c");
}

#[test]
fn a_v3_document_without_sharding_works_and_undoes_its_codecs_backwards() {
    let codecs = json!([{"name":"transpose","configuration":{"order":[1,0]}},{"name":"bytes","configuration":{"endian":"big"}},{"name":"gzip"},{"name":"crc32c"}]);
    let doc = parse3(&with(v3(), "/codecs", codecs)).unwrap();
    assert_eq!(doc.codecs, [Codec::Crc32c, Codec::Gzip]);
    assert_eq!((doc.order, doc.big_endian), (Order::F, true));
    assert_eq!(doc.chunk_shape, [4, 6]);
}

#[test]
fn key_encodings_are_followed() {
    let v2_keys = json!({"name":"v2"});
    assert_eq!(parse3(&with(v3(), "/chunk_key_encoding", v2_keys)).unwrap().chunk_key(&[1, 2]), "1.2");
    let dots = json!({"name":"default","configuration":{"separator":"."}});
    assert_eq!(parse3(&with(v3(), "/chunk_key_encoding", dots)).unwrap().chunk_key(&[1, 2]), "c.1.2");
    assert_eq!(parse2(&with(v2(), "/dimension_separator", json!("/"))).unwrap().chunk_key(&[1, 2]), "1/2");
}

#[test]
fn forged_v2_documents_are_refused_by_name() {
    for (pointer, value, expected) in [
        ("/shape", json!([-1, 7]), "list of sizes"),
        ("/shape", json!([1.5, 7]), "list of sizes"),
        ("/shape", json!("x"), "list of sizes"),
        ("/shape", json!([3]), "axes"),
        ("/shape", json!([1u64 << 61, 1u64 << 61]), "bytes"),
        ("/shape", json!([1u64 << 40, 7]), "bytes"),
        ("/chunks", json!([0, 4]), "side of 0"),
        ("/chunks", json!([1u64 << 40, 4]), "bytes"),
        ("/dtype", json!("<V9"), "not supported"),
        ("/dtype", json!([["a", "<f4"]]), "not supported"),
        ("/compressor", json!({"id":"blosc"}), "blosc"),
        ("/compressor", json!({}), "no member \"id\""),
        ("/filters", json!([{"id":"delta"}]), "filters"),
        ("/order", json!("K"), "order"),
        ("/dimension_separator", json!("_"), "dimension_separator"),
        ("/zarr_format", json!(3), "zarr_format"),
        ("/fill_value", json!("x"), "fill_value"),
    ] {
        let error = parse2(&with(v2(), pointer, value)).unwrap_err().to_string();
        assert!(error.starts_with("a/.zarray: ") && error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn a_grid_of_too_many_chunks_is_refused() {
    let document = with(with(v2(), "/shape", json!([1 << 20, 1 << 20])), "/chunks", json!([1, 1]));
    assert!(parse2(&document).unwrap_err().to_string().contains("chunks"));
}

#[test]
fn too_many_axes_are_refused() {
    let ones = json!(vec![1; 33]);
    let document = with(with(v2(), "/shape", ones.clone()), "/chunks", ones);
    assert!(parse2(&document).unwrap_err().to_string().contains("33 axes"));
}

#[test]
fn forged_v3_documents_are_refused_by_name() {
    let shard = "/codecs/0/configuration";
    for (pointer, value, expected) in [
        ("/node_type".to_owned(), json!("group"), "node_type"),
        ("/data_type".into(), json!("string"), "data_type"),
        ("/chunk_grid/name".into(), json!("rectangular"), "chunk_grid"),
        ("/chunk_key_encoding/name".into(), json!("x"), "chunk_key_encoding"),
        ("/codecs".into(), json!([]), "neither"),
        ("/codecs".into(), json!([{"name":"zstd"},{"name":"bytes"}]), "wrong place"),
        ("/codecs".into(), json!([{"name":"bytes"},{"name":"blosc"}]), "blosc"),
        ("/codecs".into(), json!(vec![json!({"name":"bytes"}); 9]), "at most"),
        ("/codecs".into(), json!([{"name":"transpose","configuration":{"order":[0,0]}},{"name":"bytes"}]), "transpose"),
        (format!("{shard}/chunk_shape"), json!([3, 3]), "does not divide"),
        (format!("{shard}/chunk_shape"), json!([0, 3]), "side of 0"),
        (format!("{shard}/chunk_shape"), json!([2]), "axes"),
        (format!("{shard}/index_codecs"), json!([{"name":"bytes"},{"name":"gzip"}]), "shard index"),
        (format!("{shard}/codecs/0/name"), json!("sharding_indexed"), "sharding_indexed"),
        (format!("{shard}/codecs/0/configuration/endian"), json!("middle"), "endian"),
    ] {
        let error = parse3(&with(v3(), &pointer, value)).unwrap_err().to_string();
        assert!(error.starts_with("a/zarr.json: ") && error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn a_shard_of_too_many_chunks_is_refused() {
    let document = with(
        with(v3(), "/chunk_grid/configuration/chunk_shape", json!([1 << 11, 1 << 11])),
        "/codecs/0/configuration/chunk_shape",
        json!([1, 1]),
    );
    assert!(parse3(&document).unwrap_err().to_string().contains("shard"));
}

#[test]
fn what_is_not_an_object_or_too_deep_is_refused() {
    for text in ["", "[1]", "null", "{", &"[".repeat(200_000)] {
        assert!(parse_v2("a/.zarray", text.as_bytes()).unwrap_err().to_string().starts_with("a/.zarray: "));
    }
}
