// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PREFETCH_H
#define UB_PREFETCH_H

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief Bring a cache line into the cache, to be written.
 *
 * To the compiler (GCC 12) a prefetch is no effect, so that it takes a function which does
 * nothing but prefetch for one without effects and drops the calls of it. The empty statement is
 * one that it keeps.
 *
 * @param [in] at Where; need not be valid.
 */
[[gnu::always_inline]] inline void
UbPrefetch(const void* at)
{
    __builtin_prefetch(at, 1);
    asm volatile("");
}

} // namespace ns3

#endif // UB_PREFETCH_H
