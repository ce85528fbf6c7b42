//! The pickle in a file of `torch.save`, read without executing it.
//!
//! A pickle is a program for a stack machine that may call any function of Python. Here it may call four things, none
//! of which is run: an ordered dictionary, a tensor over a storage, a parameter over a tensor, and the types of storages.
//! Whatever else it names is an error. The machine's values are numbers, texts that lie in the pickle itself, and
//! indices into one list of containers, so that memory grows with the length of the pickle and with nothing else,
//! and neither depth nor cycles matter.

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;

/// A storage: the name of its entry in the archive, and how many elements it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    pub(crate) len: i64,
}

/// A tensor: a strided view of a storage, which lies within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) storage: Storage,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends before it says so.
    #[error("its pickle ends in the middle of an instruction")]
    Truncated,
    /// Another protocol of pickles, or no pickle.
    #[error("its pickle is not of protocol 2, which is what torch.save writes")]
    Protocol,
    /// An instruction that saved tensors do not need.
    #[error("its pickle has the instruction {0:#04x} at byte {1}, which saved tensors do not need")]
    Instruction(u8, usize),
    /// An instruction that does not fit what is on the stack, or an argument that no tensor has.
    #[error("its pickle is malformed at byte {at}: {rule}")]
    Malformed {
        /// Where, in bytes.
        at: usize,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// It names something that is neither a tensor nor a part of one.
    #[error("its pickle asks for `{0}`: only tensors are read, and nothing is called")]
    Refused(String),
    /// A value among the tensors that is no tensor.
    #[error("`{name}` is {found} and not a tensor: save model.state_dict() alone")]
    NotTensor {
        /// Its name.
        name: String,
        /// What it is.
        found: &'static str,
    },
}

/// What a pickle may call.
#[derive(Debug, Clone, Copy)]
enum Callable {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Dtype),
}

impl Callable {
    fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::Tensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::Parameter),
            ("torch", storage) => storage_dtype(storage).map(Self::Storage),
            _ => None,
        }
    }
}

fn storage_dtype(storage: &str) -> Option<Dtype> {
    Some(match storage {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Float,
    Int(i64),
    Text(&'a str),
    Callable(Callable),
    /// A place in the list of containers.
    Container(usize),
}

#[derive(Debug)]
enum Container<'a> {
    /// What is in a list is of no use to a tensor.
    List,
    Tuple(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage),
    Tensor(View),
}

struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    containers: Vec<Container<'a>>,
}

/// The tensors of a pickled dictionary, by name.
///
/// # Errors
///
/// Whatever it holds that is not a tensor, and whatever does not fit together.
pub(crate) fn tensors(pickle: &[u8]) -> Result<BTreeMap<String, View>, PickleError> {
    let mut machine = Machine {
        pickle,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        containers: Vec::new(),
    };
    let top = machine.run()?;
    let Some(Container::Dict(entries)) = machine.container(top) else {
        return Err(machine.malformed("it holds no dictionary of tensors"));
    };
    let mut tensors = BTreeMap::new();
    for &(name, value) in entries {
        let Value::Text(name) = name else {
            return Err(machine.malformed("a tensor's name must be a text"));
        };
        let Some(Container::Tensor(view)) = machine.container(value) else {
            return Err(PickleError::NotTensor { name: name.into(), found: machine.kind(value) });
        };
        tensors.insert(name.to_owned(), view.clone());
    }
    Ok(tensors)
}

impl<'a> Machine<'a> {
    /// Runs to the end and returns what is on top then.
    fn run(&mut self) -> Result<Value<'a>, PickleError> {
        if self.pickle.get(..2) != Some(&[0x80, 2]) {
            return Err(PickleError::Protocol);
        }
        self.at = 2;
        loop {
            let start = self.at;
            let [instruction] = self.take()?;
            match instruction {
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'K' => {
                    let [value] = self.take()?;
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Float);
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    let text = self.slice(length as usize)?;
                    let text =
                        std::str::from_utf8(text).map_err(|_| self.malformed("a text must be UTF-8"))?;
                    self.stack.push(Value::Text(text));
                }
                b'c' => self.global()?,
                b')' => self.push(Container::Tuple(Vec::new())),
                b']' => self.push(Container::List),
                b'}' => self.push(Container::Dict(Vec::new())),
                0x85..=0x87 => {
                    let count = usize::from(instruction - 0x84);
                    let from = self.stack.len().checked_sub(count).filter(|&from| from >= self.floor());
                    let from = from.ok_or_else(|| self.malformed(EMPTY))?;
                    let items = self.stack.split_off(from);
                    self.push(Container::Tuple(items));
                }
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Container::Tuple(items));
                }
                b'a' | b'e' => {
                    if instruction == b'a' {
                        self.pop()?;
                    } else {
                        self.since_mark()?;
                    }
                    let list = self.top()?;
                    if !matches!(self.container(list), Some(Container::List)) {
                        return Err(self.malformed("only a list can be appended to"));
                    }
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.dict()?.push((key, value));
                }
                b'u' => {
                    let items = self.since_mark()?;
                    let (pairs, rest) = items.as_chunks::<2>();
                    if !rest.is_empty() {
                        return Err(self.malformed("a key must have a value"));
                    }
                    self.dict()?.extend(pairs.iter().map(|&[key, value]| (key, value)));
                }
                b'q' => {
                    let [place] = self.take()?;
                    let top = self.top()?;
                    self.memo.insert(place.into(), top);
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.take()?);
                    let top = self.top()?;
                    self.memo.insert(place, top);
                }
                b'h' => {
                    let [place] = self.take()?;
                    self.recall(place.into())?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.take()?);
                    self.recall(place)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage =
                        self.storage(id).ok_or_else(|| self.malformed("only a storage can lie elsewhere"))?;
                    self.push(Container::Storage(storage));
                }
                b'R' => self.reduce()?,
                // Attributes of a dictionary: a state_dict has the versions of its modules there.
                b'b' => {
                    self.pop()?;
                    self.dict()?;
                }
                other => return Err(PickleError::Instruction(other, start)),
            }
        }
    }

    /// Calls one of the four things.
    fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let Some(Container::Tuple(arguments)) = self.container(arguments) else {
            return Err(self.malformed("arguments must be a tuple"));
        };
        match (callable, arguments.as_slice()) {
            (Value::Callable(Callable::OrderedDict), []) => self.push(Container::Dict(Vec::new())),
            // Whether it wants a gradient, and hooks, are nothing to us. A seventh argument would be a conjugate or a
            // negative view.
            (Value::Callable(Callable::Tensor), &[storage, offset, shape, strides, _, _]) => {
                let view = self.view(storage, offset, shape, strides);
                let view = view.ok_or_else(|| self.malformed("a tensor must lie within its storage"))?;
                self.push(Container::Tensor(view));
            }
            (Value::Callable(Callable::Parameter), &[tensor, _, _])
                if matches!(self.container(tensor), Some(Container::Tensor(_))) =>
            {
                self.stack.push(tensor);
            }
            _ => return Err(self.malformed("these arguments are not those of a tensor")),
        }
        Ok(())
    }

    fn view(&self, storage: Value, offset: Value, shape: Value, strides: Value) -> Option<View> {
        let Some(Container::Storage(storage)) = self.container(storage) else { return None };
        let Value::Int(offset) = offset else { return None };
        let (shape, strides) = (self.numbers(shape)?, self.numbers(strides)?);
        if shape.len() != strides.len() || shape.len() > DIMENSIONS || offset < 0 {
            return None;
        }
        // A view may be longer than its storage, with strides of 0, but not than what can be counted.
        shape.iter().try_fold(1i64, |count, &size| count.checked_mul(size.max(1)))?;
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).max(0).checked_mul(stride)?)
        })?;
        let empty = shape.contains(&0);
        (empty || last < storage.len).then(|| View { storage: storage.clone(), offset, shape, strides })
    }

    /// A tuple of numbers, none below 0.
    fn numbers(&self, value: Value) -> Option<Vec<i64>> {
        let Some(Container::Tuple(items)) = self.container(value) else { return None };
        let number = |item: &Value| match item {
            Value::Int(number) => Some(*number).filter(|&number| number >= 0),
            _ => None,
        };
        items.iter().map(number).collect()
    }

    /// What `("storage", type, key, device, length)` stands for.
    fn storage(&self, id: Value) -> Option<Storage> {
        let Some(Container::Tuple(id)) = self.container(id) else { return None };
        match id[..] {
            [
                Value::Text("storage"),
                Value::Callable(Callable::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(len @ 0..),
            ] if key.len() <= KEY_DIGITS && key.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(Storage { key: key.into(), dtype, len })
            }
            _ => None,
        }
    }

    fn global(&mut self) -> Result<(), PickleError> {
        let (module, name) = (self.line()?, self.line()?);
        let callable = Callable::find(module, name);
        let callable = callable.ok_or_else(|| PickleError::Refused(format!("{module}.{name}")))?;
        self.stack.push(Value::Callable(callable));
        Ok(())
    }

    /// An integer of up to eight bytes, the sign in the highest bit of the last.
    fn long(&mut self) -> Result<(), PickleError> {
        let [length] = self.take()?;
        let bytes = self.slice(length.into())?;
        if bytes.len() > 8 {
            return Err(self.malformed("a number must fit into eight bytes"));
        }
        let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&place).copied();
        let value = value.ok_or_else(|| self.malformed("it recalls what it has not put down"))?;
        self.stack.push(value);
        Ok(())
    }

    fn push(&mut self, container: Container<'a>) {
        self.stack.push(Value::Container(self.containers.len()));
        self.containers.push(container);
    }

    /// Below this height the stack belongs to the instruction that will close the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, PickleError> {
        let top = self.stack[self.floor()..].last().copied();
        top.ok_or_else(|| self.malformed(EMPTY))
    }

    fn pop(&mut self) -> Result<Value<'a>, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Value<'a>>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn container(&self, value: Value) -> Option<&Container<'a>> {
        match value {
            Value::Container(place) => Some(&self.containers[place]),
            _ => None,
        }
    }

    /// The dictionary on top.
    fn dict(&mut self) -> Result<&mut Vec<(Value<'a>, Value<'a>)>, PickleError> {
        let top = self.top()?;
        let error = self.malformed("only a dictionary has entries and attributes");
        match top {
            Value::Container(place) => match &mut self.containers[place] {
                Container::Dict(entries) => Ok(entries),
                _ => Err(error),
            },
            _ => Err(error),
        }
    }

    fn kind(&self, value: Value) -> &'static str {
        match value {
            Value::None => "None",
            Value::Bool => "a truth value",
            Value::Float | Value::Int(_) => "a number",
            Value::Text(_) => "a text",
            Value::Callable(_) => "a type",
            Value::Container(place) => match self.containers[place] {
                Container::List => "a list",
                Container::Tuple(_) => "a tuple",
                Container::Dict(_) => "a dictionary",
                Container::Storage(_) => "a storage",
                Container::Tensor(_) => "a tensor",
            },
        }
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let slice = self.pickle[self.at..].get(..length).ok_or(PickleError::Truncated)?;
        self.at += length;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        Ok(self.slice(N)?.try_into().expect("the slice has this length"))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.pickle[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated)?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.malformed("a name must be UTF-8"))
    }

    fn malformed(&self, rule: &'static str) -> PickleError {
        PickleError::Malformed { at: self.at, rule }
    }
}

/// Dimensions of a tensor at most. Every tensor has a shape of its own, so that without a limit a few bytes that name a
/// long shape once more would cost its whole length again.
const DIMENSIONS: usize = 64;

/// Digits of a storage's key at most, for the same reason.
const KEY_DIGITS: usize = 20;

const EMPTY: &str = "the stack is empty";

#[cfg(test)]
mod tests {
    use super::*;

    /// A pickle of protocol 2 around a body.
    fn read(body: &[u8]) -> Result<BTreeMap<String, View>, PickleError> {
        tensors(&[b"\x80\x02", body, b"."].concat())
    }

    fn text(text: &str) -> Vec<u8> {
        [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// `{"w": tensor}`, the tensor in storage `key` of `len` f32 elements; numbers are below 256.
    fn one(key: &str, len: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let tuple = |numbers: &[u8]| {
            let numbers = numbers.iter().flat_map(|&number| [b'K', number]).collect::<Vec<_>>();
            [b"(", &numbers[..], b"t"].concat()
        };
        [
            b"}",
            &text("w")[..],
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            &text("storage"),
            b"ctorch\nFloatStorage\n",
            &text(key),
            &text("cpu"),
            b"K",
            &[len],
            b"tQK",
            &[offset],
            &tuple(shape),
            &tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtRs",
        ]
        .concat()
    }

    #[test]
    fn a_tensor() {
        let tensors = read(&one("7", 12, 1, &[2, 5], &[6, 1])).unwrap();
        let storage = Storage { key: "7".into(), dtype: Dtype::F32, len: 12 };
        assert_eq!(tensors["w"], View { storage, offset: 1, shape: vec![2, 5], strides: vec![6, 1] });
    }

    #[test]
    fn a_view_beyond_its_storage() {
        for (offset, shape, strides) in
            [(3, [2, 5], [6, 1]), (0, [3, 1], [6, 1]), (12, [1, 1], [1, 1]), (0, [255, 255], [255, 255])]
        {
            let error = read(&one("7", 12, offset, &shape, &strides)).unwrap_err();
            assert!(error.to_string().contains("a tensor must lie within its storage"), "{error}");
        }
        assert!(read(&one("7", 12, 0, &[2, 5], &[6])).is_err());
        // Without elements there is nothing to lie anywhere.
        read(&one("7", 12, 200, &[0, 5], &[6, 1])).unwrap();
    }

    /// A long shape or key must not be paid for by each tensor that has it.
    #[test]
    fn long_shapes_and_keys_are_refused() {
        let long = [1u8; DIMENSIONS + 1];
        read(&one("7", 12, 0, &long[1..], &long[1..])).unwrap();
        assert!(read(&one("7", 12, 0, &long, &long)).is_err());
        assert!(read(&one(&"7".repeat(KEY_DIGITS + 1), 12, 0, &[1], &[1])).is_err());
        // 255 to the power of 7 elements can be counted in 63 bits, one dimension more cannot.
        read(&one("7", 12, 0, &[255; 7], &[0; 7])).unwrap();
        assert!(read(&one("7", 12, 0, &[255; 8], &[0; 8])).is_err());
    }

    #[test]
    fn a_storage_outside_the_archive() {
        for key in ["../../etc/passwd", "0/../1", "-1", "data.pkl"] {
            assert!(read(&one(key, 12, 0, &[1], &[1])).is_err(), "{key}");
        }
    }

    #[test]
    fn what_is_refused() {
        let refused = |body: &[u8]| read(body).unwrap_err().to_string();
        insta::assert_snapshot!(refused(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R"), @"its pickle asks for `os.system`: only tensors are read, and nothing is called");
        insta::assert_snapshot!(refused(b"ctorch\nload\n"), @"its pickle asks for `torch.load`: only tensors are read, and nothing is called");
        // REDUCE with arguments of something else; EXT1; a dictionary that is none.
        insta::assert_snapshot!(refused(b"ccollections\nOrderedDict\nK\x01\x85R"), @"its pickle is malformed at byte 31: these arguments are not those of a tensor");
        insta::assert_snapshot!(refused(b"\x82\x01"), @"its pickle has the instruction 0x82 at byte 2, which saved tensors do not need");
        insta::assert_snapshot!(refused(b"]"), @"its pickle is malformed at byte 4: it holds no dictionary of tensors");
        insta::assert_snapshot!(refused(b"}K\x01K\x02s"), @"its pickle is malformed at byte 9: a tensor's name must be a text");
        insta::assert_snapshot!(refused(&[b"}", &text("epoch")[..], b"K\x02s"].concat()), @"`epoch` is a number and not a tensor: save model.state_dict() alone");
        insta::assert_snapshot!(tensors(b"\x80\x04.").unwrap_err().to_string(), @"its pickle is not of protocol 2, which is what torch.save writes");
        insta::assert_snapshot!(tensors(b"\x80\x02}").unwrap_err().to_string(), @"its pickle ends in the middle of an instruction");
    }

    /// Instructions without what they work on, below a mark too.
    #[test]
    fn an_empty_stack() {
        for body in [
            &b""[..],
            b"(",
            b"}(.",
            b"}(s",
            b"a",
            b"e",
            b"s",
            b"}u",
            b"q\x00",
            b"h\x00",
            b"j\x00\x00\x00\x00",
            b"Q",
            b"R",
            b"b",
            b"\x85",
            b"}(\x85",
            b"}(K\x01\x86",
            b"(K\x01K\x02u",
            b"}(K\x01u",
            b")(e",
        ] {
            assert!(matches!(read(body), Err(PickleError::Malformed { .. })), "{body:?}");
        }
    }

    /// Deep nesting, cycles and doubling cost no more than the bytes that say so.
    #[test]
    fn containers_are_never_walked() {
        let deep = [vec![b')'], vec![0x85; 1 << 20]].concat();
        assert!(read(&deep).is_err());
        let doubled = [b")".to_vec(), b"q\x00h\x00\x86".repeat(1 << 16)].concat();
        assert!(read(&doubled).is_err());
        // A dictionary that is its own value.
        let cycle = [b"}q\x00", &text("self")[..], b"h\x00s"].concat();
        assert_eq!(
            read(&cycle).unwrap_err().to_string(),
            "`self` is a dictionary and not a tensor: save model.state_dict() alone"
        );
    }

    #[test]
    fn numbers_of_every_length() {
        let storage = |len: &[u8]| {
            let id =
                [b"(", &text("storage")[..], b"ctorch\nHalfStorage\n", &text("0"), &text("cpu"), len, b"tQ"]
                    .concat();
            let tensor =
                [b"}", &text("w")[..], b"ctorch._utils\n_rebuild_tensor_v2\n(", &id, b"K\x00))\x89NtRs"]
                    .concat();
            read(&tensor).map(|tensors| tensors["w"].storage.len)
        };
        assert_eq!(storage(b"K\xff"), Ok(255));
        assert_eq!(storage(b"M\xff\xff"), Ok(65535));
        assert_eq!(storage(b"J\xff\xff\xff\x7f"), Ok(i64::from(i32::MAX)));
        assert_eq!(storage(b"\x8a\x05\x00\x00\x00\x00\x01"), Ok(1 << 32));
        assert_eq!(storage(b"\x8a\x02\xff\x00"), Ok(255));
        // Below 0, and too long.
        assert!(storage(b"J\xff\xff\xff\xff").is_err());
        assert!(storage(b"\x8a\x01\xff").is_err());
        assert!(storage(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01").is_err());
    }
}
