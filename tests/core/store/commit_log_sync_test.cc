#include <gtest/gtest.h>
#include <sqlite3.h>

#include <string_view>

#include "core/store/run_store.h"
#include "tests/core/store/store_directory.h"

namespace nibble {
namespace {

int wal_syncs = 0;
int (*real_open)(sqlite3_vfs*, const char*, sqlite3_file*, int, int*) = nullptr;
int (*real_sync)(sqlite3_file*, int) = nullptr;
sqlite3_io_methods counting_methods;

int count_sync(sqlite3_file* file, int flags) {
  ++wal_syncs;
  return real_sync(file, flags);
}

/// Opens as SQLite would, but counts the syncs of write-ahead logs.
int open_counting(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out) {
  const int result = real_open(vfs, name, file, flags, out);
  if (result == SQLITE_OK && name != nullptr && std::string_view(name).ends_with("-wal")) {
    counting_methods = *file->pMethods;
    real_sync = counting_methods.xSync;
    counting_methods.xSync = count_sync;
    file->pMethods = &counting_methods;
  }
  return result;
}

class CommitLogSync : public StoreDirectory {
 protected:
  void SetUp() override {
    StoreDirectory::SetUp();
    sqlite3_vfs* standard = sqlite3_vfs_find(nullptr);
    ASSERT_NE(standard, nullptr);
    real_open = standard->xOpen;
    vfs_ = *standard;
    vfs_.zName = "counting";
    vfs_.xOpen = open_counting;
    ASSERT_EQ(sqlite3_vfs_register(&vfs_, 1), SQLITE_OK);
  }
  void TearDown() override {
    sqlite3_vfs_unregister(&vfs_);
    StoreDirectory::TearDown();
  }
  sqlite3_vfs vfs_{};
};

TEST_F(CommitLogSync, EachDecisionIsSyncedToDiskBeforeItIsReported) {
  RunStore store(path());
  for (int64_t version = 1; version <= 5; ++version) {
    for (const Decision decision : {Decision::kPrepared, Decision::kCommitted}) {
      const int before = wal_syncs;
      store.record_version({.version = version, .decision = decision});
      EXPECT_GT(wal_syncs, before) << version;
    }
  }
}

}  // namespace
}  // namespace nibble
