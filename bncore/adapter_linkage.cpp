/* Compiled into every adapter: says which bncore it calls, once the loader has found one.
 *
 * The loader takes a library of the right name that is in the process already, and LD_PRELOAD and a host's own symbols
 * come before it, so this need not be the one of the package that compiled the adapter. */
#include <cstring>
#include <string>

#include <dlfcn.h>

#include "bncore.h"

static std::string described(const char *version, int abi)
{
    return "bncore " + std::string(version) + " (ABI " + std::to_string(abi) + ")";
}

/* NULL where it is the version that the adapter was compiled for; else what was expected and what was found. */
extern "C" __attribute__((visibility("default"))) const char *bncore_adapter_mismatch(void)
{
    const char *const version = bncore_version();
    const int abi = bncore_abi_version();
    if (abi == BNCORE_ABI_VERSION && std::strcmp(version, BNCORE_VERSION) == 0) return nullptr;
    static const std::string text = [&] {
        Dl_info place{};
        const bool known = dladdr(reinterpret_cast<void *>(&bncore_version), &place) != 0;
        return "expected " + described(BNCORE_VERSION, BNCORE_ABI_VERSION) + ", got " +
               described(version, abi) +
               (known && place.dli_fname ? std::string(" of ") + place.dli_fname : "");
    }();
    return text.c_str();
}
