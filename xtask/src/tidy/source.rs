//! Rust text as the rules read it: comments, strings and characters blanked out, lines kept.
//!
//! Invariant: the masked text has the same lines as the original, and each kept character stands in its old column, so
//! a place found in one is a place in the other. A scanner, not a parser: it knows where code is, not what it means.

/// A source file, masked.
pub(super) struct Source {
    /// Code alone, line by line.
    pub(super) lines: Vec<String>,
    /// Whether the line belongs to a `#[cfg(test)]` item.
    pub(super) in_tests: Vec<bool>,
}

impl Source {
    pub(super) fn new(text: &str) -> Self {
        let lines: Vec<String> = mask(text).lines().map(str::to_owned).collect();
        let in_tests = test_lines(&lines);
        Self { lines, in_tests }
    }

    /// All lines, numbered from 1.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, line.as_str()))
    }
}

/// Replaces every character of comments, strings and character literals by a space; newlines stay.
fn mask(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out: Vec<char> = characters.iter().map(|character| if *character == '\n' { '\n' } else { ' ' }).collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let mut index = 0;
    while index < characters.len() {
        let (here, next) = (at(index), at(index + 1));
        let in_word = index > 0 && is_word(at(index - 1));
        index = if here == '/' && next == '/' {
            skip_until(index, |i| at(i) == '\n' || at(i) == '\0')
        } else if here == '/' && next == '*' {
            skip_block_comment(index, &at)
        } else if here == '"' {
            skip_string(index, &at)
        } else if !in_word && matches!(here, 'r' | 'b' | 'c') && raw_string(index, &at).is_some() {
            raw_string(index, &at).unwrap_or(index + 1)
        } else if here == '\'' && next == '\\' {
            skip_until(index + 3, |i| at(i) == '\'' || at(i) == '\0') + 1
        } else if here == '\'' && at(index + 2) == '\'' {
            index + 3
        } else {
            out[index] = here;
            index + 1
        };
    }
    out.into_iter().collect()
}

pub(super) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn skip_until(mut index: usize, stop: impl Fn(usize) -> bool) -> usize {
    while !stop(index) {
        index += 1;
    }
    index
}

fn skip_block_comment(mut index: usize, at: &impl Fn(usize) -> char) -> usize {
    let mut depth = 0;
    loop {
        match (at(index), at(index + 1)) {
            ('/', '*') => (depth, index) = (depth + 1, index + 2),
            ('*', '/') if depth == 1 => return index + 2,
            ('*', '/') => (depth, index) = (depth - 1, index + 2),
            ('\0', _) => return index,
            _ => index += 1,
        }
    }
}

fn skip_string(index: usize, at: &impl Fn(usize) -> char) -> usize {
    let mut index = index + 1;
    loop {
        match at(index) {
            '\\' => index += 2,
            '"' => return index + 1,
            '\0' => return index,
            _ => index += 1,
        }
    }
}

/// Where the raw string that starts at `index` (`r"`, `br#"`, …) ends; `None` if none starts there.
fn raw_string(index: usize, at: &impl Fn(usize) -> char) -> Option<usize> {
    let mut here = index;
    if matches!(at(here), 'b' | 'c') {
        here += 1;
    }
    if at(here) != 'r' {
        return None;
    }
    here += 1;
    let hashes = skip_until(here, |i| at(i) != '#') - here;
    here += hashes;
    if at(here) != '"' {
        return None;
    }
    loop {
        here += 1;
        if at(here) == '\0' {
            return Some(here);
        }
        if at(here) == '"' && (1..=hashes).all(|hash| at(here + hash) == '#') {
            return Some(here + hashes + 1);
        }
    }
}

/// Marks the lines of every item under `#[cfg(test)]`: up to its closing brace, or to its semicolon.
fn test_lines(lines: &[String]) -> Vec<bool> {
    let mut marks = vec![false; lines.len()];
    let mut index = 0;
    while index < lines.len() {
        let Some(column) = lines[index].find("#[cfg(test)]") else {
            index += 1;
            continue;
        };
        let mut depth = 0i64;
        let mut skip = column + "#[cfg(test)]".len();
        let mut ended = false;
        while index < lines.len() && !ended {
            marks[index] = true;
            for character in lines[index][skip..].chars() {
                match character {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                ended |= depth <= 0 && matches!(character, '}' | ';');
            }
            skip = 0;
            index += 1;
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blanked_in_place() {
        let text = "let a = \"x // y\"; // z\nlet b = '\"'; /* c /* d */ e */ f('\\'', 'x');";
        let masked = mask(text);
        assert_eq!(masked.lines().next(), Some("let a =         ;     "));
        assert_eq!(masked.len(), text.len());
        assert!(masked.contains("let b =    ;") && masked.contains(" f(    ,    );"), "{masked}");
        assert!(!masked.contains(['c', 'd', 'x', 'z']), "{masked}");
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        let masked = mask("a(r#\"one \" two\"#, br\"three\\\", \"four\") b::<'static>");
        assert_eq!(masked.split_whitespace().collect::<Vec<_>>(), ["a(", ",", ",", ")", "b::<'static>"]);
    }

    #[test]
    fn an_unfinished_string_ends_with_the_file() {
        assert_eq!(mask("a \"b").trim(), "a");
        assert_eq!(mask("a /* b").trim(), "a");
        assert_eq!(mask("a r#\"b\"").trim(), "a");
    }

    #[test]
    fn a_test_module_ends_at_its_own_brace() {
        let source = Source::new(
            "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}",
        );
        assert_eq!(source.in_tests, [false, true, true, true, true, false, true, true, false]);
    }
}
