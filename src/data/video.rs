//! Videos, decoded by the `ffmpeg` program: frames as u8 RGB, each at exactly the time that was asked for.
//!
//! ffmpeg writes raw frames to a pipe and, through its filter `showinfo`, each frame's time and size to stderr just
//! before. Frames are chosen by their own time (edit lists and B-frames are ffmpeg's work), never by counting: a time
//! is right within [`TOLERANCE_S`], as LeRobot's loaders have it.
//!
//! Invariant: no more than one frame is held, and none is larger than the dataset says. A video that is cut off, runs at
//! another rate or has another size is an error, never a wrong frame.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

/// How far a frame's time may be from the one asked for; LeRobot's `tolerance_s`.
pub const TOLERANCE_S: f64 = 1e-4;
/// Names the program to run in place of `ffmpeg`.
const PROGRAM: &str = "PI0_FFMPEG";
/// Decoders round sizes up; beyond this the video is none of ours and is not decoded at all.
const PADDING_PIXELS: usize = 128;
/// Of ffmpeg's words, those that are kept for the message.
const MAX_COMPLAINTS: usize = 4;
/// The longest line of ffmpeg's that is read as one.
const MAX_LINE_BYTES: u64 = 16 << 10;
/// Frames that ffmpeg may have announced before they are taken; it never holds as many.
const MAX_ANNOUNCED: usize = 4096;

/// What can be wrong with a video, or with the program that decodes it.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    /// There is no ffmpeg.
    #[error(
        "{}: cannot be run ({why}); the frames of videos are decoded by ffmpeg. Install it (apt-get install ffmpeg, \
         brew install ffmpeg) or name it in {PROGRAM}. Statistics, and datasets whose pictures lie in the tables, need none",
        program.display()
    )]
    NoFfmpeg {
        /// What was tried.
        program: PathBuf,
        /// Why it did not run.
        why: String,
    },
    /// The video is not there.
    #[error("{}: the video is missing", file.display())]
    Missing {
        /// The video.
        file: PathBuf,
    },
    /// A name that is no video's.
    #[error("{}: no container that is read here; expected .mp4, .mov, .mkv, .webm or .avi", file.display())]
    Container {
        /// The file.
        file: PathBuf,
    },
    /// ffmpeg cannot decode it.
    #[error("{}: ffmpeg cannot decode it: {said}", file.display())]
    Broken {
        /// The video.
        file: PathBuf,
        /// Its words.
        said: String,
    },
    /// The video ends before the episode does.
    #[error("{}: expected {expected} frames from {from_s} s on, found {found}{said}", file.display())]
    Short {
        /// The video.
        file: PathBuf,
        /// Where the first stands that was asked for.
        from_s: f64,
        /// Frames asked for.
        expected: usize,
        /// Frames that are there.
        found: usize,
        /// ffmpeg's words, if it had any.
        said: String,
    },
    /// The pictures have another size than the dataset says.
    #[error("{}: expected pictures of {expected}, as info.json says, found {found}", file.display())]
    Size {
        /// The video.
        file: PathBuf,
        /// `640x480`.
        expected: String,
        /// `320x240`.
        found: String,
    },
    /// The video runs at another rate than the dataset.
    #[error("{}: expected {expected} frames a second, as info.json says, found {found}", file.display())]
    Rate {
        /// The video.
        file: PathBuf,
        /// The dataset's.
        expected: f64,
        /// The video's.
        found: f64,
    },
    /// There is no frame at this time.
    #[error("{}: no frame within 0.1 ms of {time_s} s; the next is at {next_s} s", file.display())]
    Time {
        /// The video.
        file: PathBuf,
        /// The time asked for.
        time_s: f64,
        /// The first frame after it.
        next_s: f64,
    },
    /// The pipe broke.
    #[error("{}: {source}", file.display())]
    Io {
        /// The video.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Takes frames, one after the other: the position in [`Clip::times`], and the pixels, u8 `[h, w, 3]`.
pub type EachFrame<'a, E> = dyn FnMut(usize, &[u8]) -> Result<(), E> + 'a;

/// Which frames of which video.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// The video.
    pub file: &'a Path,
    /// Height and width of its pictures, as the dataset says.
    pub size: (usize, usize),
    /// Frames per second, as the dataset says.
    pub fps: f64,
    /// Times of the frames in the file, in seconds, growing.
    pub times: &'a [f64],
    /// Threads of the decoder; 0 for as many as it likes.
    pub threads: usize,
}

/// The program, found and tried.
#[derive(Debug, Clone)]
pub struct Ffmpeg {
    program: PathBuf,
    /// Its version, as it says.
    pub version: String,
    passthrough: [&'static str; 2],
}

impl Ffmpeg {
    /// Finds it: the environment's `PI0_FFMPEG`, or else `ffmpeg` on the path.
    ///
    /// # Errors
    /// It is not there, or it is no ffmpeg.
    pub fn find() -> Result<Self, VideoError> {
        let program = std::env::var_os(PROGRAM).filter(|name| !name.is_empty());
        Self::at(PathBuf::from(program.unwrap_or_else(|| OsString::from("ffmpeg"))))
    }

    /// Tries the program at this place.
    ///
    /// # Errors
    /// As [`Ffmpeg::find`].
    pub fn at(program: PathBuf) -> Result<Self, VideoError> {
        let none = |why: String| VideoError::NoFfmpeg { program: program.clone(), why };
        let told = Command::new(&program).arg("-version").stdin(Stdio::null()).output();
        let told = told.map_err(|error| none(error.to_string()))?;
        let text = String::from_utf8_lossy(&told.stdout);
        let Some(version) = text.lines().next().and_then(|line| line.strip_prefix("ffmpeg version ")) else {
            return Err(none("it does not say that it is ffmpeg".to_owned()));
        };
        let version = version.split_whitespace().next().unwrap_or_default().to_owned();
        // `-fps_mode` came with 5.1, and `-vsync` left later; what has no number is built from a newer source.
        let mut numbers = version.trim_start_matches('n').split(['.', '-']).map(|part| part.parse::<u32>().ok());
        let old = match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), minor) => (major, minor.unwrap_or(0)) < (5, 1),
            (None, _) => false,
        };
        let passthrough = [if old { "-vsync" } else { "-fps_mode" }, "passthrough"];
        Ok(Ffmpeg { program, version, passthrough })
    }

    /// Decodes the frames of a clip, one after the other: `each` is given the position in `times` and the picture, u8
    /// `[h, w, 3]`.
    ///
    /// # Errors
    /// The video is missing, cut off, of another size or rate, or has no frame at a time; whatever `each` returns.
    pub fn decode<E: From<VideoError>>(&self, clip: &Clip, each: &mut EachFrame<E>) -> Result<(), E> {
        let Some(first) = clip.times.first() else { return Ok(()) };
        let file = || clip.file.to_owned();
        let io = |source| VideoError::Io { file: file(), source };
        let mut running = self.start(clip, *first)?;
        let mut words = Words::default();
        let mut picture = vec![0; clip.size.0 * clip.size.1 * 3];
        let mut done = 0;
        while let Some(wanted) = clip.times.get(done) {
            let Some((time, size)) = running.announced(&mut words) else {
                let said = words.said();
                return Err(match (words.frames, said.is_empty()) {
                    (0, false) => VideoError::Broken { file: file(), said },
                    _ => {
                        let said = if said.is_empty() { said } else { format!("; ffmpeg: {said}") };
                        let expected = clip.times.len();
                        VideoError::Short { file: file(), from_s: *first, expected, found: done, said }
                    }
                }
                .into());
            };
            if size != (clip.size.1, clip.size.0) {
                let spell = |(w, h)| format!("{w}x{h}");
                let expected = spell((clip.size.1, clip.size.0));
                return Err(VideoError::Size { file: file(), expected, found: spell(size) }.into());
            }
            if time > wanted + TOLERANCE_S {
                return Err(match words.rate {
                    Some(rate) if (rate / clip.fps - 1.0).abs() > 1e-3 => {
                        VideoError::Rate { file: file(), expected: clip.fps, found: rate }
                    }
                    _ => VideoError::Time { file: file(), time_s: *wanted, next_s: time },
                }
                .into());
            }
            running.picture(&mut picture).map_err(io)?;
            if time >= wanted - TOLERANCE_S {
                each(done, &picture)?;
                done += 1;
            }
        }
        Ok(())
    }

    fn start(&self, clip: &Clip, first: f64) -> Result<Running, VideoError> {
        if !clip.file.exists() {
            return Err(VideoError::Missing { file: clip.file.to_owned() });
        }
        // Told, not guessed: a text that names other files must not pass for a video.
        let demuxer = match clip.file.extension().and_then(OsStr::to_str) {
            Some("mp4" | "mov" | "m4v") => "mov",
            Some("mkv" | "webm") => "matroska",
            Some("avi") => "avi",
            _ => return Err(VideoError::Container { file: clip.file.to_owned() }),
        };
        let pixels = (clip.size.0 + PADDING_PIXELS) * (clip.size.1 + PADDING_PIXELS);
        let mut input = OsString::from("file:");
        input.push(clip.file);
        let mut command = Command::new(&self.program);
        command.args(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-copyts", "-noautorotate"]);
        if clip.threads > 0 {
            command.args(["-threads", &clip.threads.to_string()]);
        }
        // Half a frame early, so that rounding never loses the first.
        let seek_s = first - 0.5 / clip.fps;
        if seek_s > 0.0 {
            command.args(["-ss", &format!("{seek_s:.6}")]);
        }
        command.args(["-max_pixels", &pixels.to_string(), "-protocol_whitelist", "file", "-f", demuxer, "-i"]);
        command.arg(input).args(["-map", "0:v:0"]).args(self.passthrough);
        command.args(["-vf", "showinfo=checksum=0", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let none =
            |error: std::io::Error| VideoError::NoFfmpeg { program: self.program.clone(), why: error.to_string() };
        let mut child = command.spawn().map_err(none)?;
        let (send, lines) = sync_channel(MAX_ANNOUNCED);
        if let Some(errors) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut errors = BufReader::new(errors);
                let mut line = vec![];
                while let Ok(1..) = errors.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                    if let Some(line) = Line::parse(&String::from_utf8_lossy(&line))
                        && send.send(line).is_err()
                    {
                        return;
                    }
                    line.clear();
                }
            });
        }
        Ok(Running { child, lines })
    }
}

/// ffmpeg at work; ended when it is no longer needed.
struct Running {
    child: Child,
    lines: Receiver<Line>,
}

impl Running {
    /// Time and size of the next frame; `None` when there is none.
    fn announced(&mut self, words: &mut Words) -> Option<(f64, (usize, usize))> {
        loop {
            match self.lines.recv().ok()? {
                Line::Clock { base, rate } => (words.base, words.rate) = (Some(base), rate),
                Line::Frame { stamp, size } => {
                    words.frames += 1;
                    return Some((stamp as f64 * words.base?, size));
                }
                Line::Complaint(text) if words.complaints.len() < MAX_COMPLAINTS => words.complaints.push(text),
                Line::Complaint(_) => {}
            }
        }
    }

    /// The next picture.
    fn picture(&mut self, picture: &mut [u8]) -> std::io::Result<()> {
        match &mut self.child.stdout {
            Some(out) => out.read_exact(picture),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way nobody waits for its answer.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What ffmpeg said so far.
#[derive(Default)]
struct Words {
    base: Option<f64>,
    rate: Option<f64>,
    frames: usize,
    complaints: Vec<String>,
}

impl Words {
    fn said(&self) -> String {
        self.complaints.join("; ")
    }
}

/// A line of ffmpeg's that says something.
#[derive(Debug, PartialEq)]
enum Line {
    /// Seconds of a tick, and frames per second where the file says.
    Clock { base: f64, rate: Option<f64> },
    /// A frame: its time in ticks; width and height.
    Frame { stamp: i64, size: (usize, usize) },
    /// What ffmpeg calls an error.
    Complaint(String),
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if line.starts_with("[Parsed_showinfo") {
            if let Some((_, clock)) = line.split_once("config in time_base: ") {
                let (base, rate) = clock.split_once(", frame_rate: ")?;
                return Some(Line::Clock { base: ratio(base)?, rate: ratio(rate) });
            }
            let (_, stamp) = line.split_once(" pts:")?;
            let (_, size) = line.split_once(" s:")?;
            let (width, height) = size.split_whitespace().next()?.split_once('x')?;
            let stamp = stamp.split_whitespace().next()?.parse().ok()?;
            return Some(Line::Frame { stamp, size: (width.parse().ok()?, height.parse().ok()?) });
        }
        let (_, text) = line.split_once("[error] ").or_else(|| line.split_once("[fatal] "))?;
        Some(Line::Complaint(text.to_owned()))
    }
}

/// `1/12800`; nothing where a part is 0.
fn ratio(text: &str) -> Option<f64> {
    let (over, under) = text.trim().split_once('/')?;
    let (over, under): (f64, f64) = (over.parse().ok()?, under.parse().ok()?);
    (over > 0.0 && under > 0.0).then_some(over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ffmpeg_says_of_a_frame_is_understood() {
        let line = "[Parsed_showinfo_0 @ 0x55f] [info] n:   3 pts:    768 pts_time:0.06    duration: 256 fmt:yuv420p sar:1/1 s:320x240 i:P iskey:0 type:B ";
        assert_eq!(Line::parse(line), Some(Line::Frame { stamp: 768, size: (320, 240) }));
        let line = "[Parsed_showinfo_0 @ 0x55f] [info] config in time_base: 1/12800, frame_rate: 50/1";
        assert_eq!(Line::parse(line), Some(Line::Clock { base: 1.0 / 12800.0, rate: Some(50.0) }));
        let line = "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x1] [error] moov atom not found";
        assert_eq!(Line::parse(line), Some(Line::Complaint("moov atom not found".to_owned())));
        assert_eq!(Line::parse("[info]   title : [Parsed_showinfo_0 @ 0x55f] n: 0 pts: 0 s:1x1"), None);
    }

    #[test]
    fn a_missing_ffmpeg_says_what_it_is_for_and_how_to_get_it() {
        let error = Ffmpeg::at(PathBuf::from("/nowhere/ffmpeg")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/ffmpeg: cannot be run"), "{error}");
        assert!(error.contains("apt-get install ffmpeg") && error.contains("PI0_FFMPEG"), "{error}");
        assert!(error.contains("Statistics") && error.contains("need none"), "{error}");
    }
}
