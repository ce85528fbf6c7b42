//! Files of `torch.save`: a zip archive of a pickle and of storages, `NAME/data.pkl` and `NAME/data/0`, `NAME/data/1` ...
//!
//! Nothing is unpacked onto the disk. A storage is read when a tensor needs it, into memory that is bounded by the
//! length of the file: entries must be stored without compression, as `torch.save` writes them, and all of them
//! together cannot be longer than the file.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use tch::{Kind, Tensor};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::ModelError;
use crate::checkpoint::Stored;
use crate::pickle::{self, PickleError, View};

/// The longest pickle that is read, in bytes; one of 400 tensors has about 50,000.
const LONGEST_PICKLE: u64 = 4 << 20;

/// The first bytes of what `torch.save` wrote before PyTorch 1.6: a pickle of its magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Why a file of `torch.save` cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TorchFileError {
    /// The format without an archive.
    #[error(
        "it has the format of torch.save before PyTorch 1.6; load it in Python and save it again, or as safetensors"
    )]
    Legacy,
    /// Not a zip archive, or a damaged one.
    #[error("it is not a whole archive of torch.save ({0}); fetch it again")]
    Archive(#[from] ZipError),
    /// An entry that could not be read to its end.
    #[error("its entry {name} cannot be read ({source}); fetch it again")]
    Entry {
        /// The entry.
        name: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// An archive that `torch.save` does not write.
    #[error("it is not an archive of torch.save: {0}")]
    Layout(String),
    /// The pickle in it.
    #[error(transparent)]
    Pickle(#[from] PickleError),
}

/// An open file.
#[derive(Debug)]
pub(crate) struct TorchFile {
    archive: ZipArchive<File>,
    /// The folder in the archive that all entries are in, with its slash.
    root: String,
    tensors: BTreeMap<String, View>,
    /// Storages that were read, flat and f32, by entry and by what was read there.
    storages: HashMap<(String, Kind), Tensor>,
}

impl TorchFile {
    /// Opens a file and reads what tensors it has, but no values.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or that is not an archive of tensors.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let opened = File::open(path).and_then(|mut file| {
            let mut start = Vec::new();
            file.by_ref().take(LEGACY.len() as u64).read_to_end(&mut start)?;
            Ok((start == LEGACY, file.metadata()?.len(), file))
        });
        let (legacy, length, file) =
            opened.map_err(|source| ModelError::File { path: path.into(), source })?;
        let opened = if legacy { Err(TorchFileError::Legacy) } else { Self::from_archive(file, length) };
        opened.map_err(|problem| ModelError::TorchFile { path: path.into(), problem })
    }

    fn from_archive(file: File, length: u64) -> Result<Self, TorchFileError> {
        let mut archive = ZipArchive::new(file)?;
        let layout = |rule: String| Err(TorchFileError::Layout(rule));
        let mut total = 0u64;
        for place in 0..archive.len() {
            let entry = archive.by_index_raw(place)?;
            if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
                return layout(format!("its entry {} is compressed", entry.name()?));
            }
            total = total.saturating_add(entry.size());
        }
        if total > length {
            return layout("its entries are together longer than the file".into());
        }
        let names = archive.file_names().collect::<Result<Vec<_>, _>>()?;
        let root = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
        let Some(root) = root.filter(|root| root.ends_with('/')).map(str::to_owned) else {
            return layout("it has no data.pkl".into());
        };
        let order = format!("{root}byteorder");
        if archive.index_for_name(&order).is_some() && read(&mut archive, &order, 16)? != b"little" {
            return layout("its numbers are not little-endian".into());
        }
        let tensors = pickle::tensors(&read(&mut archive, &format!("{root}data.pkl"), LONGEST_PICKLE)?)?;
        Ok(Self { archive, root, tensors, storages: HashMap::new() })
    }

    /// What it has.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Stored> {
        let place = |view: &View| (view.storage.key.clone(), view.offset);
        let mut places: HashMap<_, Vec<&String>> = HashMap::new();
        for (name, view) in &self.tensors {
            places.entry(place(view)).or_default().push(name);
        }
        self.tensors.iter().map(move |(name, view)| Stored {
            name: name.clone(),
            shape: view.shape.clone(),
            dtype: view.storage.dtype,
            tied: places[&place(view)].iter().find(|other| **other != name).map(|other| (*other).clone()),
        })
    }

    /// The values of a tensor that the file has, whose dtype is `kind`; f32.
    ///
    /// # Errors
    ///
    /// A storage that is missing or damaged, or of another length than the pickle says.
    pub(crate) fn tensor(&mut self, name: &str, kind: Kind) -> Result<Tensor, TorchFileError> {
        let View { storage, offset, shape, strides } = &self.tensors[name];
        let entry = format!("{}data/{}", self.root, storage.key);
        let values = match self.storages.entry((entry.clone(), kind)) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(place) => {
                let bytes = read(&mut self.archive, &entry, u64::MAX)?;
                let (length, size) = (storage.len, kind.elt_size_in_bytes());
                if (length as usize).checked_mul(size) != Some(bytes.len()) {
                    return Err(TorchFileError::Layout(format!(
                        "{entry} has {} bytes, but its pickle says {length} elements of {size}",
                        bytes.len()
                    )));
                }
                place.insert(Tensor::from_data_size(&bytes, &[length], kind).to_kind(Kind::Float))
            }
        };
        // A view and not a copy: many tensors may share a storage.
        Ok(values.as_strided(shape, strides, *offset))
    }
}

/// The bytes of an entry, of which there must be no more than `longest`.
fn read(archive: &mut ZipArchive<File>, name: &str, longest: u64) -> Result<Vec<u8>, TorchFileError> {
    let mut entry = match archive.by_name(name) {
        Err(ZipError::FileNotFound) => return Err(TorchFileError::Layout(format!("it has no {name}"))),
        found => found?,
    };
    if entry.size() > longest {
        return Err(TorchFileError::Layout(format!("{name} has more than {longest} bytes")));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry.read_to_end(&mut bytes).map_err(|source| TorchFileError::Entry { name: name.into(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use adalora_adapter::random::Random;
    use safetensors::Dtype;
    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    fn reference(name: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values/torch-files")).join(name)
    }

    fn open(name: &str) -> Result<TorchFile, String> {
        let path = reference(name);
        TorchFile::open(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    fn error(name: &str) -> String {
        open(name).unwrap_err()
    }

    /// Everything of these dtypes that a file has, or the first error.
    fn read_all(path: &Path) -> Result<HashMap<String, Tensor>, String> {
        let mut file = TorchFile::open(path).map_err(|error| error.to_string())?;
        let stored: Vec<_> = file.stored().filter_map(|own| Some((own.kind()?, own.name))).collect();
        let tensors = stored.into_iter().map(|(kind, name)| {
            file.tensor(&name, kind).map(|tensor| (name, tensor)).map_err(|error| error.to_string())
        });
        tensors.collect()
    }

    /// An archive with these entries.
    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = ZipWriter::new(file.reopen().unwrap());
        for (name, bytes) in entries {
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
            writer.start_file(*name, options).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    #[test]
    fn every_kind_of_view() {
        let expected: HashMap<_, _> =
            Tensor::read_safetensors(reference("views.safetensors")).unwrap().into_iter().collect();
        let read = read_all(&reference("views.bin")).unwrap();
        let mut unread: Vec<_> =
            open("views.bin").unwrap().stored().filter(|own| own.kind().is_none()).collect();
        unread.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(
            unread.iter().map(|own| (own.name.as_str(), own.dtype)).collect::<Vec<_>>(),
            [("f64", Dtype::F64), ("i64", Dtype::I64)]
        );
        assert_eq!(read.len() + unread.len(), expected.len() + 1);
        for (name, tensor) in read {
            assert_eq!(tensor.kind(), Kind::Float);
            assert_eq!(tensor, expected[&name].to_kind(Kind::Float), "{name}");
        }
    }

    #[test]
    fn tied_tensors_share_their_storage() {
        let mut file = open("views.bin").unwrap();
        let mut address = |name: &str| file.tensor(name, Kind::Float).unwrap().data_ptr();
        assert_eq!(address("tied"), address("tied_too"));
        assert_eq!(address("tied"), address("expanded"));
        assert_ne!(address("tied"), address("f32"));
    }

    #[test]
    fn files_that_are_refused() {
        insta::assert_snapshot!(error("legacy.bin"), @"FILE: it has the format of torch.save before PyTorch 1.6; load it in Python and save it again, or as safetensors");
        insta::assert_snapshot!(error("payload.bin"), @"FILE: its pickle asks for `__builtin__.exec`: only tensors are read, and nothing is called");
        insta::assert_snapshot!(error("training.bin"), @"FILE: `model` is a dictionary and not a tensor: save model.state_dict() alone");
        insta::assert_snapshot!(error("list.bin"), @"FILE: its pickle is malformed at byte 158: it holds no dictionary of tensors");
        insta::assert_snapshot!(error("complex.bin"), @"FILE: its pickle asks for `torch.ComplexFloatStorage`: only tensors are read, and nothing is called");
        insta::assert_snapshot!(error("negative.bin"), @"FILE: its pickle is malformed at byte 247: these arguments are not those of a tensor");
        insta::assert_snapshot!(error("protocol-4.bin"), @"FILE: its pickle is not of protocol 2, which is what torch.save writes");
        insta::assert_snapshot!(error("compressed.bin"), @"FILE: it is not an archive of torch.save: its entry archive/data.pkl is compressed");
        insta::assert_snapshot!(error("views.safetensors"), @"FILE: it is not a whole archive of torch.save (invalid Zip archive: Could not find EOCD); fetch it again");
    }

    #[test]
    fn archives_that_are_refused() {
        let refused = |entries: &[(&str, &[u8])]| {
            let file = archive(entries);
            let text = read_all(file.path()).unwrap_err();
            text.replace(&file.path().display().to_string(), "FILE")
        };
        insta::assert_snapshot!(refused(&[("readme", b"nothing")]), @"FILE: it is not an archive of torch.save: it has no data.pkl");
        insta::assert_snapshot!(refused(&[("data.pkl", b"\x80\x02}.")]), @"FILE: it is not an archive of torch.save: it has no data.pkl");
        insta::assert_snapshot!(refused(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")]), @"FILE: it is not an archive of torch.save: its numbers are not little-endian");
        insta::assert_snapshot!(refused(&[("a/data.pkl", &vec![b'('; 5 << 20])]), @"FILE: it is not an archive of torch.save: a/data.pkl has more than 4194304 bytes");

        let mut views = ZipArchive::new(File::open(reference("views.bin")).unwrap()).unwrap();
        let root = views.name_for_index(0).unwrap().unwrap().split('/').next().unwrap().to_owned();
        let pickle = read(&mut views, &format!("{root}/data.pkl"), 1 << 20).unwrap();
        // The storages are not there, or in another folder, or too short.
        insta::assert_snapshot!(refused(&[("a/data.pkl", &pickle)]), @"it is not an archive of torch.save: it has no a/data/2");
        insta::assert_snapshot!(refused(&[("a/data.pkl", &pickle), ("b/data/3", &[0; 48])]), @"it is not an archive of torch.save: it has no a/data/2");
        let short: Vec<_> = (0..20).map(|i| format!("a/data/{i}")).collect();
        let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", &pickle)];
        entries.extend(short.iter().map(|name| (name.as_str(), &[0u8; 3][..])));
        insta::assert_snapshot!(refused(&entries), @"it is not an archive of torch.save: a/data/2 has 3 bytes, but its pickle says 3 elements of 2");
    }

    #[test]
    fn a_damaged_storage() {
        let mut bytes = std::fs::read(reference("views.bin")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        // The first storage begins at a multiple of 64 behind its header.
        let name = b"/data/0";
        let header = bytes.windows(name.len()).position(|window| window == name).unwrap();
        let start = (header + name.len()).next_multiple_of(64);
        bytes[start] ^= 1;
        std::fs::write(file.path(), bytes).unwrap();
        let text = read_all(file.path()).unwrap_err();
        assert!(text.contains("data/0 cannot be read (Invalid checksum)"), "{text}");
    }

    /// Neither a cut nor a changed byte anywhere may do worse than give an error or other numbers.
    #[test]
    fn spoiled_files_give_errors() {
        let whole = std::fs::read(reference("views.bin")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let spoil = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_all(file.path()).is_err()
        };
        for length in 0..whole.len() {
            assert!(spoil(&whole[..length]), "the first {length} bytes pass for a whole file");
        }
        let places = Random::new(5, "spoil").uniform(&[1500], whole.len() as f64 / 2.0);
        let places =
            Vec::<f32>::try_from(places).unwrap().into_iter().map(|place| place + whole.len() as f32 / 2.0);
        let mut errors = 0;
        for (i, place) in places.enumerate() {
            let mut bytes = whole.clone();
            bytes[place as usize] ^= (1 + i % 255) as u8;
            errors += usize::from(spoil(&bytes));
        }
        assert!(errors > 500, "{errors}");
    }
}
