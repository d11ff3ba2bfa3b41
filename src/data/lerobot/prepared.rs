//! Frames decoded and resized once: one film per episode and camera, so that training and statistics of pictures need
//! neither ffmpeg nor a PNG decoder again.
//!
//! A film is a header and pixels: eight bytes, the header's length (little endian); the header, JSON padded with spaces
//! so that the pixels begin at a multiple of 64; the pixels, u8 `[frames, height, width, 3]`. It names the file that it
//! was made of with that file's size and time, so that a film which the dataset has left behind is noticed. How pixels
//! are resized is the caller's: this room knows no model.
//!
//! Invariant: a film is whole or absent: it is written beside its place and renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::frames::EachPicture;
use super::{Dataset, Episode};

/// Below the dataset's folder, where none is named.
pub const DEFAULT_DIR: &str = ".pi0-cache";
/// What the header calls itself.
const FORMAT: &str = "pi0 frames 1";
/// A header has some hundred bytes.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// Where pixels may begin.
const ALIGN: usize = 64;

/// Resizes a picture: u8 `[h, w, 3]` and its height and width in, u8 `[size, size, 3]` out; or why it cannot.
pub type Resize<'a> = &'a (dyn Fn(&[u8], (usize, usize)) -> Result<Vec<u8>, String> + Sync);

/// What a film says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    format: String,
    key: String,
    episode: u64,
    frames: usize,
    height: usize,
    width: usize,
    /// How pixels were made of the source's: the caller's word.
    resized: String,
    /// The file that it was made of: its name, size and time.
    source: String,
    source_bytes: u64,
    source_modified_ns: u64,
}

/// A film, opened.
#[derive(Debug)]
pub(super) struct Film {
    path: PathBuf,
    file: File,
    header: Header,
    pixels_at: u64,
}

/// What [`Dataset::prepare`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Films written.
    pub written: u64,
    /// Films that were there already.
    pub kept: u64,
    /// Bytes of all.
    pub bytes: u64,
}

/// How much of a dataset is prepared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Films that are there.
    pub films: usize,
    /// Episodes times cameras.
    pub of: usize,
}

impl Dataset {
    /// Takes pictures from the films of this folder where there are some, in place of videos and tables.
    #[must_use]
    pub fn with_prepared(mut self, dir: &Path) -> Self {
        self.prepared = Some(dir.to_owned());
        self
    }

    /// The folder of films beside the dataset, if somebody prepared one.
    pub fn prepared_beside(dir: &Path) -> Option<PathBuf> {
        Some(dir.join(DEFAULT_DIR)).filter(|films| films.is_dir())
    }

    /// Looks at every film: is it of this state of the dataset, `size` pixels high and wide, and made by `how`?
    ///
    /// # Errors
    /// The first that is not, and what to do.
    pub fn look_at_prepared(&self, size: usize, how: &str) -> Result<Coverage, DataError> {
        let mut found = Coverage::default();
        for key in self.cameras() {
            for episode in &self.episodes {
                found.of += 1;
                let Some(Film { header, path, .. }) = self.cached(key, episode)? else { continue };
                found.films += 1;
                if (header.height, header.width, header.resized.as_str()) != (size, size, how) {
                    let what = format!(
                        "expected pictures of {size}x{size} ({how}), as the model takes them, found {}x{} ({}); \
                         `pi0 prepare --size {size}` makes them anew",
                        header.width, header.height, header.resized
                    );
                    return Err(DataError::Film { file: path, what });
                }
            }
        }
        Ok(found)
    }

    /// The film of an episode, if pictures are taken from films and it has one.
    pub(super) fn cached(&self, key: &str, episode: &Episode) -> Result<Option<Film>, DataError> {
        let Some(dir) = &self.prepared else { return Ok(None) };
        let path = film_path(dir, key, episode.index);
        if !path.exists() {
            return Ok(None);
        }
        let film = Film::open(&path)?;
        let (size, how) = ((film.header.height, film.header.width), film.header.resized.clone());
        let expected = self.header(key, episode, size, &how)?;
        if film.header != expected {
            let what = "it was made of another state of the dataset; run `pi0 prepare` again".to_owned();
            return Err(DataError::Film { file: path, what });
        }
        Ok(Some(film))
    }

    /// What the film of an episode must say.
    fn header(&self, key: &str, episode: &Episode, size: (usize, usize), how: &str) -> Result<Header, DataError> {
        let source = episode.videos.get(key).map_or(&episode.table, |place| &place.file);
        let told = fs::metadata(source).map_err(DataError::io(source))?;
        let modified = told.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Ok(Header {
            format: FORMAT.to_owned(),
            key: key.to_owned(),
            episode: episode.index,
            frames: episode.len(),
            height: size.0,
            width: size.1,
            resized: how.to_owned(),
            source: source.strip_prefix(&self.dir).unwrap_or(source).display().to_string(),
            source_bytes: told.len(),
            source_modified_ns: u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// Makes the films of these episodes, all cameras, in parallel; those that are there and fit are kept.
    ///
    /// `how` names what `resize` does: films that were resized otherwise are made anew. `progress` is told how many
    /// frames are done, from several threads.
    ///
    /// # Errors
    /// As [`Dataset::pictures`]; a folder that cannot be written; a `resize` that returns another size. Films that were
    /// finished by then stay.
    pub fn prepare(
        &self,
        dir: &Path,
        episodes: &[&Episode],
        size: usize,
        how: &str,
        resize: Resize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Done, DataError> {
        let cameras: Vec<&str> = self.cameras().collect();
        let films: Vec<(&Episode, &str)> =
            episodes.iter().flat_map(|episode| cameras.iter().map(|key| (*episode, *key))).collect();
        let frames = AtomicU64::new(0);
        let step = |count: u64| progress(frames.fetch_add(count, Ordering::Relaxed) + count);
        let done: Vec<Done> = films
            .par_iter()
            .map(|(episode, key)| {
                let header = self.header(key, episode, (size, size), how)?;
                let path = film_path(dir, key, episode.index);
                let bytes = header.pixels() + ALIGN as u64;
                if Film::open(&path).is_ok_and(|film| film.header == header) {
                    step(episode.len() as u64);
                    return Ok(Done { written: 0, kept: 1, bytes });
                }
                self.write_film(&path, &header, episode, resize, &|| step(1))?;
                Ok(Done { written: 1, kept: 0, bytes })
            })
            .collect::<Result<_, DataError>>()?;
        Ok(done.iter().fold(Done::default(), |sum, film| Done {
            written: sum.written + film.written,
            kept: sum.kept + film.kept,
            bytes: sum.bytes + film.bytes,
        }))
    }

    fn write_film(
        &self,
        path: &Path,
        header: &Header,
        episode: &Episode,
        resize: Resize,
        step: &dyn Fn(),
    ) -> Result<(), DataError> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        let partial = Partial(path.with_extension(format!("partial-{}", std::process::id())));
        let io = |source| DataError::Io { file: partial.0.clone(), source };
        let mut out = BufWriter::new(File::create(&partial.0).map_err(io)?);
        let mut text = serde_json::to_vec(header).map_err(|error| DataError::meta(path, error.to_string()))?;
        text.resize((8 + text.len()).next_multiple_of(ALIGN) - 8, b' ');
        out.write_all(&(text.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&text)).map_err(io)?;
        let expected = header.height * header.width * 3;
        // One thread a decoder: there are as many at work as there are cores.
        self.pictures(&header.key, episode, 0..episode.len(), 1, &mut |_, size, pixels| {
            let resized = resize(pixels, size).and_then(|resized| match resized.len() == expected {
                true => Ok(resized),
                false => Err(format!("resized to {} bytes, expected {expected}", resized.len())),
            });
            let resized = resized.map_err(|what| DataError::Feature { key: header.key.clone(), what })?;
            out.write_all(&resized).map_err(io)?;
            step();
            Ok(())
        })?;
        out.into_inner().map_err(|error| io(error.into_error()))?.sync_all().map_err(io)?;
        fs::rename(&partial.0, path).map_err(io)
    }
}

/// A file that is not finished; removed unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

impl Header {
    /// Bytes of the pixels. No film of ours is larger than this can count: it saturates, and no file is as large.
    fn pixels(&self) -> u64 {
        [self.frames, self.height, self.width, 3].iter().fold(1u64, |product, n| product.saturating_mul(*n as u64))
    }
}

impl Film {
    fn open(path: &Path) -> Result<Self, DataError> {
        let wrong = |what: &str| DataError::Film { file: path.to_owned(), what: format!("{what}; delete it") };
        let mut file = File::open(path).map_err(DataError::io(path))?;
        let bytes = file.metadata().map_err(DataError::io(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| wrong("it has no header"))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length + 8 > bytes {
            return Err(wrong("its header is cut off"));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(DataError::io(path))?;
        let header: Header = serde_json::from_slice(&text).map_err(|_| wrong("its header is none of ours"))?;
        let pixels_at = 8 + length;
        if header.format != FORMAT || bytes.checked_sub(pixels_at) != Some(header.pixels()) {
            return Err(wrong("it is not as long as its header says"));
        }
        Ok(Film { path: path.to_owned(), file, header, pixels_at })
    }

    /// Its pictures, as [`Dataset::pictures`] gives them.
    pub(super) fn pictures(mut self, frames: Range<usize>, each: &mut EachPicture) -> Result<(), DataError> {
        if frames.end > self.header.frames {
            let there = format!("episode {} has {} frames", self.header.episode, self.header.frames);
            return Err(DataError::Range { what: "frame", asked: frames.end as u64, there });
        }
        let size = (self.header.height, self.header.width);
        let mut picture = vec![0; size.0 * size.1 * 3];
        let start = self.pixels_at + frames.start as u64 * picture.len() as u64;
        self.file.seek(SeekFrom::Start(start)).map_err(DataError::io(&self.path))?;
        for frame in frames {
            self.file.read_exact(&mut picture).map_err(DataError::io(&self.path))?;
            each(frame, size, &picture)?;
        }
        Ok(())
    }
}

/// `<dir>/<camera>/episode_000000.frames`. A camera's key is foreign: what no file name should have is spelt in hex.
fn film_path(dir: &Path, key: &str, episode: u64) -> PathBuf {
    let mut folder = String::new();
    for (at, byte) in key.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => folder.push(byte as char),
            b'.' if at > 0 => folder.push('.'),
            _ => folder += &format!("%{byte:02x}"),
        }
    }
    dir.join(folder).join(format!("episode_{episode:06}.frames"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_film_lies_in_its_folder_whatever_its_camera_is_called() {
        let path = film_path(Path::new("films"), "observation.images.cam_high", 7);
        assert_eq!(path, Path::new("films/observation.images.cam_high/episode_000007.frames"));
        let path = film_path(Path::new("films"), "../../etc", 7);
        assert_eq!(path, Path::new("films/%2e.%2f..%2fetc/episode_000007.frames"));
    }
}
