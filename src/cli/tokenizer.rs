//! `pi0 tokenizer`: what a tokenizer is, text ⇄ tokens, and the vocabulary as a `tokenizer.json`.
//!
//! Here too is the one place where the other verbs find a tokenizer: `find`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::Answer;
use super::fetch::resolve;
use super::output::{Mouth, grouped};
use crate::cache::{self, Home};
use crate::policy::tokenizer::{Format, Kind, PUBLISHED_AT, PieceKind, Places, Tokenizer};

const EXAMPLES: &str = "\
Examples:
  Which tokenizer would be used, and is it PaliGemma's?
    pi0 tokenizer
    pi0 tokenizer --checkpoint checkpoints/pi0_libero/29999
    pi0 tokenizer --tokenizer tokenizer.model

  What are these words to the model, and what are these tokens?
    pi0 tokenizer --encode 'pick up the red block'
    pi0 tokenizer --decode 18075,908,573,3118,3963

  A tokenizer.json for Hugging Face's tokenizers, with the ids that sentencepiece gives:
    pi0 tokenizer --convert tokenizer.json

A tokenizer is looked for where --tokenizer says; or beside the checkpoint and in its assets; or in openpi's cache.
PaliGemma's own file, Gemma's tokenizer.model (its 1 152 missing pieces are added) and a tokenizer.json of either are read.";

/// Largest file of lines.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Tell what a tokenizer is.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 tokenizer --help")]
pub struct Args {
    /// PaliGemma's tokenizer: a .model or tokenizer.json, or a folder that holds one
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// Look beside this checkpoint first
    #[arg(long, visible_alias = "checkpoint-dir", alias = "checkpoint_dir", value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,

    /// The tokens of a text
    #[arg(long, value_name = "TEXT", group = "what")]
    pub encode: Option<String>,

    /// The text of tokens: ids with commas or spaces between them
    #[arg(long, value_name = "IDS", group = "what", allow_hyphen_values = true)]
    pub decode: Option<String>,

    /// The tokens of every line of a file: a JSON string each, answered by a list of ids each
    #[arg(long, value_name = "FILE", group = "what")]
    pub encode_lines: Option<PathBuf>,

    /// The text of every line of a file: a JSON list of ids each, answered by a JSON string each
    #[arg(long, value_name = "FILE", group = "what")]
    pub decode_lines: Option<PathBuf>,

    /// Write the vocabulary as a tokenizer.json
    #[arg(long, value_name = "FILE", group = "what")]
    pub convert: Option<PathBuf>,

    /// Replace a file that is there
    #[arg(long, requires = "convert")]
    pub overwrite: bool,

    /// Fetch PaliGemma's tokenizer if it is not in openpi's cache yet (needs the cargo feature `gcs`)
    #[arg(long)]
    pub download: bool,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a tokenizer is.
#[derive(Debug, Serialize)]
struct Description {
    path: String,
    format: &'static str,
    kind: &'static str,
    pieces: usize,
    normal: usize,
    user: usize,
    control: usize,
    bytes: usize,
    load_ms: f64,
    anchors: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    id: u32,
    piece: Option<String>,
}

#[derive(Debug, Serialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    pieces: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
}

#[derive(Debug, Serialize)]
struct Converted {
    path: String,
    bytes: usize,
    pieces: usize,
}

/// Where the tokenizer is: as named, beside the checkpoint, in openpi's cache; with `download` it is fetched if it is
/// nowhere and was not named.
///
/// # Errors
/// It is nowhere: every path that was looked at, and how to get one.
pub(super) fn find(named: Option<&Path>, checkpoint: Option<&Path>, download: bool, mouth: &Mouth) -> Result<PathBuf> {
    let named = named.map(|path| resolve(path, download, mouth)).transpose()?;
    let checkpoint = checkpoint.map(|path| resolve(path, download, mouth)).transpose()?;
    let home = Home::from_env();
    // What the cache says of it, also where it is not: an unfinished download is told.
    let told = cache::locate(&home, PUBLISHED_AT);
    let cached = match &told {
        Ok(found) => Some(found.path().to_owned()),
        Err(cache::Error::NotCached { expected, .. }) => Some(expected.clone()),
        Err(_) => None,
    };
    let places = Places { named: named.as_deref(), checkpoint: checkpoint.as_deref(), cached: cached.as_deref() };
    match places.find() {
        Ok(found) => Ok(found),
        Err(_) if download && named.is_none() => resolve(Path::new(PUBLISHED_AT), true, mouth),
        Err(error) => Err(error.into()),
    }
}

/// Runs it.
///
/// # Errors
/// No tokenizer, or one of another model; ids that are none; a file that cannot be read or written.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let path = find(args.tokenizer.as_deref(), args.checkpoint.as_deref(), args.download, mouth)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::open(&path)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    if let Some(text) = args.encode {
        let ids = tokenizer.encode(&text);
        let pieces = ids.iter().map(|id| tokenizer.piece(*id).map_or("", |(piece, _)| piece).to_owned()).collect();
        let encoded = Encoded { text, ids, pieces };
        mouth.say(&encoded, || tokens(&encoded))?;
    } else if let Some(ids) = args.decode {
        let ids = parse(&ids, tokenizer.len())?;
        let decoded = Decoded { text: tokenizer.decode(&ids), ids };
        mouth.say(&decoded, || format!("{}\n", decoded.text))?;
    } else if let Some(file) = &args.encode_lines {
        lines(file, |text: String| Ok(tokenizer.encode(&text)))?;
    } else if let Some(file) = &args.decode_lines {
        lines(file, |ids: Vec<u32>| Ok(tokenizer.decode(&ids)))?;
    } else if let Some(to) = &args.convert {
        let text = tokenizer.to_json();
        write(to, &text, args.overwrite)?;
        let done = Converted { path: to.display().to_string(), bytes: text.len(), pieces: tokenizer.len() };
        mouth
            .say(&done, || format!("{}: {} pieces, {} bytes\n", done.path, grouped(done.pieces as u64), done.bytes))?;
    } else {
        let description = describe(&path, &tokenizer, load_ms);
        mouth.say(&description, || words(&description))?;
    }
    Ok(Answer::Yes)
}

fn describe(path: &Path, tokenizer: &Tokenizer, load_ms: f64) -> Description {
    let count = |fits: fn(PieceKind) -> bool| {
        (0..tokenizer.len() as u32).filter_map(|id| tokenizer.piece(id)).filter(|(_, kind)| fits(*kind)).count()
    };
    let last = tokenizer.len() as u32 - 1;
    let anchors = [0, 1, 2, 3, 108, last - 1151, last - 128, last];
    let token = |id: u32| Token { id, piece: tokenizer.piece(id).map(|(piece, _)| piece.to_owned()) };
    Description {
        path: path.display().to_string(),
        format: match tokenizer.format() {
            Format::SentencePiece => "sentencepiece",
            Format::Json => "tokenizer.json",
        },
        kind: match tokenizer.kind() {
            Kind::PaliGemma => "PaliGemma",
            Kind::GemmaExtended => "Gemma, with PaliGemma's 1152 pieces added",
            Kind::Small => "a small one, for tests",
        },
        pieces: tokenizer.len(),
        normal: count(|kind| kind == PieceKind::Normal),
        user: count(|kind| kind == PieceKind::User),
        control: count(|kind| matches!(kind, PieceKind::Control | PieceKind::Unknown)),
        bytes: count(|kind| matches!(kind, PieceKind::Byte(_))),
        load_ms,
        anchors: anchors.into_iter().map(token).collect(),
    }
}

fn words(d: &Description) -> String {
    let mut t = String::new();
    let _ = writeln!(t, "{} · {} · {}", d.path, d.format, d.kind);
    let _ = writeln!(
        t,
        "{} pieces: {} made by merging, {} taken whole, {} control, {} bytes · read in {:.0} ms",
        grouped(d.pieces as u64),
        grouped(d.normal as u64),
        grouped(d.user as u64),
        d.control,
        d.bytes,
        d.load_ms
    );
    for anchor in &d.anchors {
        let _ = writeln!(t, "  {:>6}  {:?}", anchor.id, anchor.piece.as_deref().unwrap_or_default());
    }
    t
}

fn tokens(encoded: &Encoded) -> String {
    let mut t = String::new();
    for (id, piece) in encoded.ids.iter().zip(&encoded.pieces) {
        let _ = writeln!(t, "  {id:>6}  {piece:?}");
    }
    let ids: Vec<String> = encoded.ids.iter().map(u32::to_string).collect();
    let _ = writeln!(t, "{} tokens: {}", ids.len(), ids.join(","));
    t
}

/// `1,2, 3` as ids.
fn parse(text: &str, len: usize) -> Result<Vec<u32>> {
    let words = text.split([',', ' ', '[', ']']).filter(|word| !word.is_empty());
    let id = |word: &str| match word.parse::<u32>() {
        Ok(id) if (id as usize) < len => Ok(id),
        _ => bail!("{word}: expected an id from 0 to {}", len - 1),
    };
    words.map(id).collect()
}

/// Answers a file line by line, in JSON, whether or not `--json` is said.
fn lines<T: serde::de::DeserializeOwned, U: Serialize>(file: &Path, answer: impl Fn(T) -> Result<U>) -> Result<()> {
    let named = || file.display().to_string();
    let reader = BufReader::new(std::fs::File::open(file).with_context(named)?);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (number, line) in reader.lines().enumerate() {
        let line = line.with_context(named)?;
        ensure!(line.len() <= MAX_LINE_BYTES, "{}: line {}: more than {MAX_LINE_BYTES} bytes", named(), number + 1);
        let asked = serde_json::from_str(&line).with_context(|| format!("{}: line {}", named(), number + 1))?;
        match writeln!(out, "{}", serde_json::to_string(&answer(asked)?)?) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(out.flush()?)
}

fn write(to: &Path, text: &str, overwrite: bool) -> Result<()> {
    let named = || to.display().to_string();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(!overwrite).create(overwrite).truncate(overwrite);
    let mut file = match options.open(to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{}: it is there already; replace it with --overwrite", named())
        }
        other => other.with_context(named)?,
    };
    file.write_all(text.as_bytes()).with_context(named)
}
