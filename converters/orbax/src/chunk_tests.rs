//! Codec chains, there and back, and as forged.
use std::io::Write;

use proptest::prelude::*;

use super::*;

const WHAT: &str = "array \"a\", chunk 0";

fn read(stored: &[u8], codecs: &[Codec], unit: usize, expected: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder(Box::new(stored), codecs, unit, expected, WHAT.to_owned())?.read_to_end(&mut out)?;
    Ok(out)
}

fn encode(data: &[u8], codec: Codec) -> Vec<u8> {
    match codec {
        Codec::Zstd => zstd::encode_all(data, 1).unwrap(),
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Zlib => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Crc32c => [data, &crc32c::crc32c(data).to_le_bytes()].concat(),
    }
}

const ALL: [Codec; 4] = [Codec::Zstd, Codec::Gzip, Codec::Zlib, Codec::Crc32c];

fn fails(stored: &[u8], codecs: &[Codec], expected: u64, with: &str) {
    let error = read(stored, codecs, 1, expected).unwrap_err().to_string();
    assert!(error.starts_with(WHAT) && error.contains(with), "{error}");
}

proptest! {
    #[test]
    fn every_chain_comes_home(data in prop::collection::vec(any::<u8>(), 1..5000), chain in prop::collection::vec(0usize..4, 0..4), step in 1usize..700) {
        let codecs: Vec<Codec> = chain.iter().map(|&i| ALL[i]).collect();
        let stored = codecs.iter().rev().fold(data.clone(), |bytes, &codec| encode(&bytes, codec));
        let mut stream = decoder(Box::new(stored.as_slice()), &codecs, 1, data.len() as u64, WHAT.into()).unwrap();
        let (mut out, mut buffer) = (Vec::new(), vec![0; step]);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
        prop_assert_eq!(out, data);
    }

    #[test]
    fn damage_is_an_error_or_changes_nothing(data in prop::collection::vec(any::<u8>(), 1..300), codec in 0usize..4, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut stored = encode(&data, ALL[codec]);
        let at = at.index(stored.len());
        stored[at] ^= flip;
        // zstd frames carry no checksum here: wrong bytes of the right length can come out, but never a wrong length.
        if let Ok(out) = read(&stored, &[ALL[codec]], 1, data.len() as u64) {
            prop_assert_eq!(out.len(), data.len());
        }
    }
}

#[test]
fn a_chunk_of_the_wrong_length_is_refused_in_every_codec() {
    for codec in ALL {
        let stored = encode(b"twelve bytes", codec);
        fails(&stored, &[codec], 13, "too short: expected 13 bytes, found 12");
        fails(&stored, &[codec], 11, "too long: expected 11 bytes");
    }
    fails(b"abc", &[], 4, "too short");
    fails(b"abc", &[], 2, "too long");
    fails(b"", &[], 1, "too short");
}

#[test]
fn an_empty_or_garbled_or_cut_frame_is_refused() {
    for codec in ALL {
        assert!(read(b"", &[codec], 1, 12).is_err());
        assert!(read(b"not a frame at all", &[codec], 1, 12).is_err());
        let stored = encode(b"twelve bytes", codec);
        for cut in 0..stored.len() {
            assert!(read(&stored[..cut], &[codec], 1, 12).is_err(), "{codec:?} cut to {cut}");
        }
    }
}

#[test]
fn something_behind_the_frame_is_refused() {
    for codec in [Codec::Zstd, Codec::Gzip, Codec::Zlib] {
        let one = encode(b"twelve bytes", codec);
        fails(&[one.as_slice(), &[0]].concat(), &[codec], 12, "behind the end");
    }
}

#[test]
fn a_second_zstd_frame_is_refused_even_an_empty_one() {
    let one = encode(b"twelve bytes", Codec::Zstd);
    for second in [one.clone(), encode(b"", Codec::Zstd)] {
        fails(&[one.clone(), second].concat(), &[Codec::Zstd], 12, "behind the end of the zstd frame");
    }
}

#[test]
fn two_frames_of_half_a_chunk_are_not_a_chunk() {
    let half = encode(b"twelve", Codec::Zstd);
    fails(&[half.clone(), half].concat(), &[Codec::Zstd], 12, "behind the end");
}

#[test]
fn a_zstd_window_above_the_cap_is_refused() {
    // A frame header that asks for a window of 2^31: magic, descriptor, window descriptor (31 - 10) << 3, an empty last block.
    let stored = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x01, 0x00, 0x00];
    fails(&stored, &[Codec::Zstd], 12, "memory");
}

#[test]
fn a_bomb_stops_at_the_chunk_size() {
    let bomb = zstd::encode_all(io::repeat(0).take(256 << 20), 19).unwrap();
    assert!(bomb.len() < 64 << 10);
    fails(&bomb, &[Codec::Zstd], 4096, "too long");
}

#[test]
fn a_frame_that_declares_a_terabyte_allocates_nothing_for_it() {
    // Single segment, content size 2^40 in eight bytes, then one raw block of 1 byte.
    let mut stored = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    stored.extend_from_slice(&(1u64 << 40).to_le_bytes());
    stored.extend_from_slice(&[0x09, 0x00, 0x00, b'x']);
    assert!(read(&stored, &[Codec::Zstd], 1, 1).is_err());
}

#[test]
fn a_wrong_crc_is_refused() {
    let mut stored = encode(b"twelve bytes", Codec::Crc32c);
    stored[3] ^= 1;
    fails(&stored, &[Codec::Crc32c], 12, "CRC-32C");
    fails(&stored[..3], &[Codec::Crc32c], 1, "too few");
}

#[test]
fn big_endian_units_are_turned() {
    assert_eq!(read(&[1, 2, 3, 4], &[], 2, 4).unwrap(), [2, 1, 4, 3]);
    assert_eq!(read(&[1, 2, 3, 4, 5, 6, 7, 8], &[], 4, 8).unwrap(), [4, 3, 2, 1, 8, 7, 6, 5]);
    let long: Vec<u8> = (0..BUFFER * 3).map(|i| i as u8).collect();
    let turned = read(&long, &[], 8, long.len() as u64).unwrap();
    assert_eq!(read(&turned, &[], 8, long.len() as u64).unwrap(), long);
    assert!(read(&[1, 2, 3], &[], 2, 4).is_err());
}

#[test]
fn a_reader_of_exactly_the_chunk_has_seen_its_end() {
    let stored = [encode(b"twelve bytes", Codec::Zstd), vec![7]].concat();
    let mut stream = decoder(Box::new(stored.as_slice()), &[Codec::Zstd], 1, 12, WHAT.into()).unwrap();
    assert!(stream.read_exact(&mut [0; 12]).is_err());
}

#[test]
fn a_terabyte_from_a_kilobyte_is_implausible() {
    assert!(!plausible(1000, 1 << 40, true));
    assert!(plausible(1 << 20, 1 << 34, true));
    assert!(!plausible(3, 4, false));
}
