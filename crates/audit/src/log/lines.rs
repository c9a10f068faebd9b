//! Lines of a file, each with where it stands, and none longer than it may be.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use super::LogError;

/// Bytes read at once: a sequential reader of large files.
const BUFFER: usize = 256 * 1024;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Without its end.
    pub bytes: Vec<u8>,
    /// It has an end: what follows a write that was cut off has none.
    pub ended: bool,
}

/// The lines of a file.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    longest: usize,
    number: u64,
    offset: u64,
}

impl Lines {
    /// Lines of at most `longest` bytes.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(path: &Path, longest: usize) -> Result<Self, LogError> {
        let file = File::open(path).map_err(|e| LogError::io(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(BUFFER, file),
            longest,
            number: 0,
            offset: 0,
        })
    }

    /// The same from a place where a line begins; lines are then counted from there.
    ///
    /// # Errors
    /// The file can't be opened or has no such place.
    pub fn open_at(path: &Path, longest: usize, offset: u64) -> Result<Self, LogError> {
        let mut lines = Self::open(path, longest)?;
        let to = io::SeekFrom::Start(offset);
        lines.file.seek(to).map_err(|e| LogError::io(path, e))?;
        lines.offset = offset;
        Ok(lines)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&mut self) -> Result<Option<Line>, LogError> {
        let mut bytes = Vec::new();
        let most = self.longest as u64 + 1;
        let read = (&mut self.file)
            .take(most)
            .read_until(b'\n', &mut bytes)
            .map_err(|e| LogError::io(&self.path, e))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let offset = self.offset;
        self.offset += read as u64;
        let ended = bytes.last() == Some(&b'\n');
        if ended {
            bytes.pop();
        } else if bytes.len() > self.longest {
            let why = format!("a line of more than {} bytes", self.longest);
            return Err(LogError::damaged(&self.path, self.number, None, why));
        }
        Ok(Some(Line {
            number: self.number,
            offset,
            bytes,
            ended,
        }))
    }
}

impl Iterator for Lines {
    type Item = Result<Line, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
