//! The shipped map, and texts that are no map.

use super::*;

#[test]
fn the_shipped_map_parses() {
    let map = Map::parse(PI0).expect("parses");
    assert!(map.rows.len() >= 39, "{}", map.rows.len());
    for row in &map.rows {
        assert!(row.side("burn").is_some() && row.side("jax").is_some());
    }
}

#[test]
fn a_name_read_and_written_is_itself() {
    let map = Map::pi0();
    let name = "PaliGemma/llm/layers/attn/kv_einsum_1/w";
    let (row, at) = map.rows.iter().find_map(|r| Some((r, r.side("jax")?.read(name)?))).expect("known");
    assert_eq!(at, Index::from([('E', 1)]));
    assert_eq!(row.side("jax").and_then(|s| s.write(&at)).as_deref(), Some(name));
    let at = Index::from([('E', 1), ('L', 17), ('P', 1)]);
    let burn = row.side("burn").and_then(|s| s.write(&at)).expect("written");
    assert_eq!(burn, "llm.blocks.17.experts.1.v.weight");
    assert_eq!(row.side("burn").and_then(|s| s.read(&burn)), Some(at));
}

#[test]
fn letters_of_every_row_are_the_same_in_every_column() {
    let map = Map::pi0();
    for row in &map.rows {
        let all = |column: &str| {
            row.side(column).map(|side| {
                let mut letters: Vec<char> = side.letters().chain(side.named().map(|(l, _)| l)).collect();
                letters.sort_unstable();
                letters
            })
        };
        for column in row.sides.keys() {
            assert_eq!(all(column), all("burn"), "{row:?}");
        }
    }
}

#[test]
fn a_malformed_line_is_named() {
    assert_eq!(Map::parse("row\n  burn a.{L} D").unwrap_err().line, 2);
    assert_eq!(Map::parse("rows").unwrap_err().line, 1);
}
