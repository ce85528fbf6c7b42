//! Operations on the flat buffers of the parameter arena, each beside its plain tensor reference
