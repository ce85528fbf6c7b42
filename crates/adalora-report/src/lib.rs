//! Records of a run folder, statistics over seeds, tables and pictures
